// Write avatars as JSON lines, {"svg": ..., "extra": {...}}, one per seed; data.py rasterises them.
//
//   npm install @dicebear/core@9.4.3 @dicebear/pixel-art@9.4.3
//   node avatars_data.mjs --modules node_modules --count 50000 > avatars.jsonl
//
// Art: DiceBear "Pixel Art" (CC0 1.0). Each picture is determined by its seed, so the file can be reproduced exactly.
import { createWriteStream } from 'node:fs';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const argument = (name, fallback) => {
    const at = process.argv.indexOf(`--${name}`);
    return at < 0 ? fallback : process.argv[at + 1];
};
const modules = resolve(argument('modules', 'node_modules'));
const count = Number(argument('count', '50000'));
const load = (path) => import(pathToFileURL(`${modules}/${path}`));

const { createAvatar } = await load('@dicebear/core/lib/index.js');
const pixelArt = await load('@dicebear/pixel-art/lib/index.js');

const options = {
    backgroundColor: ['f4f4ee', 'b4b9c2', '9fc5f0', 'a9dba2', 'f7e08b', 'f5b3cc', 'c3aeea', 'f2b071', '2a2d36'],
    glassesProbability: 45,
    hatProbability: 12,
    beardProbability: 12,
    accessoriesProbability: 0,
};

const out = createWriteStream(argument('out', '/dev/stdout'));
for (let i = 0; i < count; i++) {
    const avatar = createAvatar(pixelArt, { seed: `avatar-${i}`, ...options });
    const { svg, extra } = avatar.toJson();
    const body = svg.replace(/<metadata.*?<\/metadata>/s, '');
    if (!out.write(`${JSON.stringify({ svg: body, extra })}\n`)) {
        await new Promise((drained) => out.once('drain', drained));
    }
}
out.end();
