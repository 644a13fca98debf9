"""Directories with classifiers of texts and images as tasks."""

import pytest
import torch

import raysearch
from raysearch.errors import DataError, TaskError
from raysearch.huggingface import image_classification_task, sequence_classification_task
from raysearch.huggingface.samples import parts_of, read_lines
from tests.support.model_directories import ENCODER, LITTLE, save_model, save_tokenizer, words

pytest.importorskip("transformers")

LABELS = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
SETTINGS = {**LITTLE, "placement": {"weight_bit_widths": (4, 8), "activation_bit_widths": ()}}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    save_model(folder, "BertForSequenceClassification", "BertConfig", **ENCODER, **LABELS)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"image_size": 8, "patch_size": 4}
    save_model(folder, "ViTForImageClassification", "ViTConfig", **ENCODER, **sizes, **LABELS)
    return folder


def lines(count):
    return [(words(2 + index % 5, index), ("good", "bad")[index % 2]) for index in range(count)]


def write_lines(folder, pairs):
    file = folder / "samples.tsv"
    file.write_text("".join(f"{text}\t{label}\n" for text, label in pairs))
    return file


def test_every_tenth_sample_is_the_tests_and_every_tenth_validations():
    parts = parts_of([str(number) for number in range(25)], None, None, read_lines)
    assert [int(text) for text, _ in parts.test] == [9, 19]
    assert [int(text) for text, _ in parts.validation] == [4, 14, 24]
    assert len(parts.calibration) == 20
    few = parts_of(["a", "b", "c"], None, None, read_lines)
    assert [part[0][0] for part in (few.calibration, few.validation, few.test)] == ["a", "b", "c"]
    own = parts_of(["a"], ["b"], ["c", "d"], read_lines)
    assert [len(part) for part in (own.calibration, own.validation, own.test)] == [1, 1, 2]


def test_lines_of_json_are_texts_with_their_labels(tmp_path):
    file = tmp_path / "reviews.jsonl"
    file.write_text('{"text": "a\\tb", "label": 1}\n\n{"text": "c"}\n')
    assert read_lines(file) == [("a\tb", "1"), ("c", None)]
    file.write_text('{"review": "a"}\n')
    with pytest.raises(DataError, match=r"reviews.jsonl is no JSON object.*review"):
        read_lines(file)


def test_texts_are_padded_and_their_padding_does_not_count(bert, tmp_path):
    task = sequence_classification_task(bert, write_lines(tmp_path, lines(20)))
    columns = task.calibration.columns
    ids, mask = columns["input_ids"], columns["attention_mask"]
    # <s>, up to six words, </s>.
    assert ids.shape == (16, 8)
    assert torch.equal(mask, (ids != 0).long())
    assert 4 in mask.sum(1)
    assert torch.equal(task.positions(columns), mask.bool())
    # Numbers 4 and 14 are validation's; "good" comes first.
    assert columns["labels"].tolist()[:6] == [1, 0, 1, 0, 0, 1]
    batch = task.calibration.first(5)
    with torch.no_grad():
        outputs = task.run(task.model, batch)
    expected = (outputs.logits.argmax(1) == batch["labels"]).double().mean()
    assert task.metrics["accuracy"](outputs, batch) == pytest.approx(float(expected))


def test_texts_without_labels_have_no_accuracy(bert):
    task = sequence_classification_task(bert, [words(20)] * 3, window=5)
    assert not task.metrics
    assert task.calibration.columns["input_ids"].shape == (1, 5)


@pytest.mark.parametrize(
    ("samples", "part"),
    [
        ([("a cat", "good"), ("a dog", "awful"), ("a mat", "bad")], "sample 0 has the label 'awful'"),
        ([("a cat", 7), "a dog", "a mat"], r"the label 7, which is none of the model's \(bad, good"),
        (["a cat", ("a dog", None), ("a mat", 1)] + ["a"] * 10, "sample 0 has the label None"),
        (["a cat"], "there are 1 samples, and 3 parts"),
        ([], "there are no texts"),
    ],
)
def test_samples_that_do_not_fit_are_refused(bert, samples, part):
    with pytest.raises(DataError, match=part):
        sequence_classification_task(bert, samples)


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path):
    save_model(tmp_path, "BertForSequenceClassification", "BertConfig", **ENCODER, **LABELS)
    save_tokenizer(tmp_path, pad_token=None)
    with pytest.raises(TaskError, match="has no padding token"):
        sequence_classification_task(tmp_path, ["a cat"] * 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* traces did not reach")
def test_a_classifier_of_texts_becomes_a_verified_file(bert, tmp_path):
    task = sequence_classification_task(bert, lines(40))
    result = raysearch.run(task, "avg_bits<=6", tmp_path, config=SETTINGS, workers=0)
    assert result.test_metrics["float"]["accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    batch = task.validation.first(3)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert raysearch.load_model(result.model_dir)(**inputs)["logits"].shape == (3, 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* traces did not reach")
def test_a_classifier_of_images_becomes_a_verified_file(vit, tmp_path):
    torch.manual_seed(0)
    images = [(torch.randn(3, 8, 8), number % 2) for number in range(20)]
    task = image_classification_task(vit, images)
    assert task.calibration.columns["pixel_values"].shape == (16, 3, 8, 8)
    # Position embeddings stay float, which a budget of mean widths warns of.
    result = raysearch.run(task, "size<=90%", tmp_path, config=SETTINGS, workers=0)
    assert set(result.standard_errors["quantized"]) == {"divergence", "accuracy"}


def test_images_are_read_from_a_folder_with_a_subfolder_a_label(vit, tmp_path):
    image = pytest.importorskip("PIL.Image")
    for label in ("good", "bad"):
        (tmp_path / label).mkdir()
        for number in range(5):
            image.new("RGB", (20, 10), (50 * number, 0, 0)).save(tmp_path / label / f"{number}.png")
    with pytest.raises(TaskError, match=r"holds no image processor \(looked for preprocessor_config.json"):
        image_classification_task(vit, tmp_path)
    from transformers import ViTImageProcessorPil

    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(vit)
    try:
        task = image_classification_task(vit, tmp_path)
        (tmp_path / "bad" / "0.png").write_bytes(b"no image")
        with pytest.raises(DataError, match=r"0.png' cannot be read"):
            image_classification_task(vit, tmp_path)
    finally:
        (vit / "preprocessor_config.json").unlink()
    columns = task.calibration.columns
    assert columns["pixel_values"].shape == (8, 3, 8, 8)
    # In the order of their names; 4 and 9 are kept back.
    assert columns["labels"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    red = columns["pixel_values"][:, 0].mean((1, 2))
    assert torch.allclose(red[:4], 50 * torch.arange(4) / 255 / 0.5 - 1, atol=1e-5)


def test_a_folder_that_is_missing_or_holds_no_image_is_refused(vit, tmp_path):
    with pytest.raises(DataError, match="none' does not exist"):
        image_classification_task(vit, tmp_path / "none")
    with pytest.raises(DataError, match=r"there are no images \(looked for .png"):
        image_classification_task(vit, tmp_path)
