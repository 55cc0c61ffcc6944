"""Tiny tokenizers and text encoders with random weights, written here: nothing is downloaded.

Every tokenizer has the same vocabulary: special tokens, then the characters of ``ALPHABET``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

ALPHABET = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"()[]{}<>|/\\_-+=*#&%$@~`^\n▁Ġ"
WIDTH = 12
_LENGTH = 77
_VOCABULARY = 512


def _numbered(*special: str, suffix: str = "") -> dict[str, int]:
    words = dict.fromkeys([*special, *ALPHABET, *(f"{c}{suffix}" for c in ALPHABET)])
    return {word: number for number, word in enumerate(words)}


def clip_tokenizer() -> Any:
    vocabulary = _numbered("<|startoftext|>", "<|endoftext|>", suffix="</w>")
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=_LENGTH)


def t5_tokenizer() -> Any:
    pieces = [
        (word, -float(number)) for number, word in enumerate(["<pad>", "</s>", "<unk>", *dict.fromkeys(ALPHABET)])
    ]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=_LENGTH)


def bert_tokenizer() -> Any:
    vocabulary = _numbered("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    return transformers.BertTokenizer(vocab=vocabulary, model_max_length=_LENGTH)


def multilingual_tokenizer() -> Any:
    pieces = [(word, -float(number)) for number, word in enumerate(_numbered("<s>", "<pad>", "</s>", "<unk>"))]
    return transformers.XLMRobertaTokenizer(vocab=pieces, model_max_length=_LENGTH)


def gemma_tokenizer() -> Any:
    vocabulary = _numbered("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
    return transformers.GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=_LENGTH)


def llama_tokenizer() -> Any:
    vocabulary = _numbered("<unk>", "<s>", "</s>")
    return transformers.LlamaTokenizer(vocab=vocabulary, merges=[], model_max_length=_LENGTH, pad_token="<unk>")


_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN_MARKS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
)


def qwen_tokenizer() -> Any:
    made = transformers.Qwen2Tokenizer(vocab=_numbered(*_QWEN_MARKS, "Ċ"), merges=[], model_max_length=4096)
    made.add_special_tokens({"additional_special_tokens": list(_QWEN_MARKS[1:])})
    made.chat_template = _CHAT
    return made


def byt5_tokenizer() -> Any:
    return transformers.ByT5Tokenizer(extra_ids=0, model_max_length=_LENGTH)


_SMALL = {"hidden_size": WIDTH, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": _VOCABULARY}
_DECODER = {**_SMALL, "num_key_value_heads": 2, "intermediate_size": 24, "head_dim": 6, "pad_token_id": 0}


def clip_text(cls: type[Any], width: int, projection: int | None = None) -> Any:
    return cls(
        transformers.CLIPTextConfig(
            **{**_SMALL, "hidden_size": width},
            intermediate_size=24,
            projection_dim=projection or width,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            max_position_embeddings=_LENGTH,
        )
    )


def t5(cls: type[Any], width: int, projection: int | None = None) -> Any:
    config = transformers.UMT5Config if cls.__name__.startswith("UM") else transformers.T5Config
    return cls(config(vocab_size=_VOCABULARY, d_model=width, d_kv=6, d_ff=24, num_layers=2, num_heads=2))


def bert(cls: type[Any], width: int, projection: int | None = None) -> Any:
    return cls(transformers.BertConfig(**{**_SMALL, "hidden_size": width}, intermediate_size=24))


def decoder(config: type[Any], model: type[Any], **more: Any) -> Callable[..., Any]:
    """Maker of a text encoder that is a decoder-only language model."""

    def make(cls: type[Any], width: int, projection: int | None = None) -> Any:
        return model(config(**{**_DECODER, "hidden_size": width, "head_dim": width // 2, **more}))

    return make


def qwen_vl(config: type[Any], model: type[Any]) -> Callable[..., Any]:
    """Maker of a vision-language model: its language part is small, and its eyes are smaller."""

    def make(cls: type[Any], width: int, projection: int | None = None, layers: int = 2) -> Any:
        text = {
            **_DECODER,
            "hidden_size": width,
            "head_dim": width // 2,
            "num_hidden_layers": layers,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 1]},
        }
        eyes = {
            "depth": 1,
            "hidden_size": 8,
            "embed_dim": 8,
            "intermediate_size": 8,
            "num_heads": 2,
            "patch_size": 2,
            "out_hidden_size": width,
            "spatial_merge_size": 2,
            "temporal_patch_size": 1,
            "fullatt_block_indexes": [0],
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        }
        marks = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6}
        return model(config(text_config=text, vision_config=eyes, **marks))

    return make


_EYES = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "image_size": 8,
    "patch_size": 4,
}


def mistral(cls: type[Any], width: int, projection: int | None = None) -> Any:
    text = {**_DECODER, "model_type": "mistral", "hidden_size": width, "head_dim": width // 2}
    eyes = {**_EYES, "model_type": "pixtral", "head_dim": 4}
    return cls(transformers.Mistral3Config(text_config=text, vision_config=eyes, image_token_index=3))


def gemma3(cls: type[Any], width: int, projection: int | None = None) -> Any:
    text = {**_DECODER, "hidden_size": width, "head_dim": width // 2}
    return cls(transformers.Gemma3Config(text_config=text, vision_config=_EYES, mm_tokens_per_image=4))


def t5gemma2(cls: type[Any], width: int, projection: int | None = None) -> Any:
    text = {**_DECODER, "hidden_size": width, "head_dim": width // 2}
    text["dropout_rate"] = 0.0
    return cls(transformers.T5Gemma2EncoderConfig(text_config=text, vision_config=_EYES, mm_tokens_per_image=4))


def siglip2_eyes(cls: type[Any], width: int, projection: int | None = None) -> Any:
    return cls(transformers.Siglip2VisionConfig(**{**_EYES, "hidden_size": width}, num_patches=4))


def clip_eyes(cls: type[Any], width: int, projection: int | None = None) -> Any:
    return cls(
        transformers.CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=16,
            num_attention_heads=2,
            num_hidden_layers=1,
            image_size=8,
            patch_size=4,
            projection_dim=projection or width,
        )
    )


#: Annotation in a pipeline's constructor → maker of a text encoder.
ENCODERS: dict[str, Callable[..., Any]] = {
    "CLIPTextModel": clip_text,
    "CLIPTextModelWithProjection": clip_text,
    "T5EncoderModel": t5,
    "UMT5EncoderModel": t5,
    "BertModel": bert,
    "CLIPVisionModelWithProjection": clip_eyes,
    "Siglip2VisionModel": siglip2_eyes,
    "Mistral3ForConditionalGeneration": mistral,
    "Gemma3ForConditionalGeneration": gemma3,
    "T5Gemma2Encoder": t5gemma2,
    "GemmaPreTrainedModel": decoder(transformers.GemmaConfig, transformers.GemmaModel),
    "Gemma2PreTrainedModel": decoder(transformers.Gemma2Config, transformers.Gemma2Model),
    "LlamaModel": decoder(transformers.LlamaConfig, transformers.LlamaModel),
    "LlamaForCausalLM": decoder(transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "GlmModel": decoder(transformers.GlmConfig, transformers.GlmModel, partial_rotary_factor=1.0),
    "Qwen3Model": decoder(transformers.Qwen3Config, transformers.Qwen3Model),
    "Qwen3ForCausalLM": decoder(transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "SmolLM3ForCausalLM": decoder(transformers.SmolLM3Config, transformers.SmolLM3ForCausalLM),
    "Qwen2_5_VLTextModel": decoder(
        transformers.Qwen2_5_VLTextConfig,
        transformers.Qwen2_5_VLTextModel,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 1]},
    ),
    "Qwen2_5_VLForConditionalGeneration": qwen_vl(
        transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration
    ),
    "Qwen3VLForConditionalGeneration": qwen_vl(
        transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration
    ),
    "Qwen3VLModel": qwen_vl(transformers.Qwen3VLConfig, transformers.Qwen3VLModel),
}

TOKENIZERS: dict[str, Callable[[], Any]] = {
    "CLIPTokenizer": clip_tokenizer,
    "T5Tokenizer": t5_tokenizer,
    "T5TokenizerFast": t5_tokenizer,
    "BertTokenizer": bert_tokenizer,
    "GemmaTokenizer": gemma_tokenizer,
    "LlamaTokenizer": llama_tokenizer,
    "Qwen2Tokenizer": qwen_tokenizer,
    "ByT5Tokenizer": byt5_tokenizer,
    "AutoTokenizer": t5_tokenizer,
}
