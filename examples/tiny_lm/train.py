"""Train the language model: some three minutes on one core, the same weights every time.

Writes `model/`, a Hugging Face directory: bfloat16 safetensors, config, tokenizer.
"""

import argparse
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from topics import MODEL, WINDOW, load_texts, windows
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = 1024
STEPS, BATCH = 500, 16
RATE = 3e-3
END = "<|end|>"


def train_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text.split("\n\n"), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, bos_token=END, model_max_length=WINDOW
    )


def make_model() -> LlamaForCausalLM:
    """Four layers of width 192; 1.8 million weights, the embedding tied to the head."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        attention_dropout=0.1,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def next_token_loss(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Mean cross-entropy of every token after the first."""
    logits = model(input_ids=ids).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def perplexity(model: LlamaForCausalLM, ids: Tensor) -> float:
    """On whole windows."""
    model.eval()
    with torch.no_grad():
        losses = [next_token_loss(model, part) * len(part) for part in ids.split(BATCH)]
    return math.exp(float(sum(losses)) / len(ids))


def train(model: LlamaForCausalLM, text: Tensor, validation: Tensor) -> None:
    """AdamW along a cosine, on windows that begin anywhere in the text."""
    generator = torch.Generator().manual_seed(0)
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    norms = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))
    for step in range(STEPS):
        rate = RATE * min(1, (step + 1) / 40) * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(text) - WINDOW, (BATCH,), generator=generator)
        model.train()
        loss = next_token_loss(model, text[starts[:, None] + torch.arange(WINDOW)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            value = perplexity(model, validation)
            print(f"step {step + 1}: loss {loss.item():.3f}, validation perplexity {value:.2f}", flush=True)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=MODEL)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    torch.manual_seed(0)
    texts = load_texts()
    tokenizer = train_tokenizer(texts["train"])
    ids = {name: windows(text, tokenizer) for name, text in texts.items()}
    print({name: tuple(part.shape) for name, part in ids.items()}, flush=True)
    model = make_model()
    print(f"{model.num_parameters():,} weights", flush=True)
    train(model, ids["train"].flatten(), ids["validation"])
    model = model.to(torch.bfloat16)
    # For its own training alone: a student that drops what its teacher has cannot follow it.
    model.config.attention_dropout = 0.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"test perplexity {perplexity(model, ids['test']):.2f} ({folder})")


if __name__ == "__main__":
    main()
