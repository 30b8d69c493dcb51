"""`adatp flops` of the sizes in `adatp/models/published.json`, held to a closed form."""

import json

import pytest

from adatp.cli.main import main
from adatp.models.published import TEXT_CONFIGS

VISUAL = {"qwen2.5": (16, 16), "qwen3-vl": (16, 14), "internvl": (32, 16)}  # frames, and a side of their grid


def flops(capsys, *arguments):
    code = main(["flops", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def counted(capsys, *arguments):
    code, out, _ = flops(capsys, *arguments, "--json")
    assert code == 0
    return json.loads(out)


def of_a_token(values):
    """(linear, attention) FLOPs of a layer: for a token, and for a pair of tokens."""
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    head = values.get("head_dim", hidden // heads)
    weights = 2 * hidden * head * (heads + values["num_key_value_heads"])
    if "num_experts" in values:
        router = values["num_experts"]
        weights += hidden * (router + 3 * values["num_experts_per_tok"] * values["moe_intermediate_size"])
    else:
        weights += 3 * hidden * values["intermediate_size"]
    return 2 * weights, 4 * head * heads


@pytest.mark.parametrize("name", TEXT_CONFIGS)
def test_every_size_in_closed_form(capsys, name):
    found = counted(capsys, "--model", name, "--method", "fastv", "--set", "layer=3", "--set", "keep=0.25")
    values = TEXT_CONFIGS[name]
    frames, side = next(size for prefix, size in VISUAL.items() if name.startswith(prefix))
    visual, layers = frames * side**2, values["num_hidden_layers"]
    lengths = [visual + 128] * 3 + [visual // 4 + 128] * (layers - 3)
    assert (found["visual_tokens"], found["text_tokens"], found["tokens_per_layer"]) == (visual, 128, lengths)
    assert (found["frames"], found["grid"]) == (frames, [side, side])
    linear, attention = of_a_token(values)
    assert found["linear"] == linear * sum(lengths)
    assert found["linear_full"] == linear * layers * (visual + 128)
    assert found["attention"] == attention * sum(length**2 for length in lengths)
    assert found["attention_full"] == attention * layers * (visual + 128) ** 2
    assert found["ratio"] == sum(lengths) / (layers * (visual + 128))


@pytest.mark.parametrize(
    ("name", "frames", "size"),
    [
        ("qwen2.5-vl-3b", 8, 4),
        ("qwen3-vl-2b", 7, 4),  # the last is joined with itself
        ("internvl3-8b", 7, 7),
        ("onevision-0.5b", 7, 7),
        ("llava-video-7b", 1, 1),
    ],
)
def test_frames_and_grid(capsys, name, frames, size):
    found = counted(capsys, "--model", name, "--frames", frames, "--grid", "5X9", "--text-tokens", 0)
    assert (found["frames"], found["grid"], found["visual_tokens"]) == (size, [5, 9], size * 45)
    assert found["tokens_per_layer"][0] == size * 45


def test_the_papers_models_keep_their_video(capsys):
    found = counted(capsys, "--model", "llava-video-7b")
    assert (found["frames"], found["grid"], found["temporal_patch"], found["text_tokens"]) == (20, [13, 14], 1, 106)


def test_what_is_assumed_is_printed(capsys):
    code, out, _ = flops(capsys, "--model", "qwen3-vl-8b")
    assert code == 0
    told = "counted: 16 frames, each a temporal patch of 2 of the video's own, of 14 x 14 tokens; 128 text tokens"
    assert told in " ".join(out.split())
    code, out, _ = flops(capsys, "--model", "onevision-7b")
    assert code == 0
    assert "counted: 32 frames, of 14 x 14 tokens; 130 text tokens" in out


def test_help_names_every_size(capsys):
    with pytest.raises(SystemExit):
        main(["flops", "--help"])
    out = "".join(capsys.readouterr().out.split())
    assert all(name in out for name in TEXT_CONFIGS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", 0], "--frames must be at least 1, got 0"),
        (["--frames", 10**12], "--frames and --grid must be 100000000 visual tokens or fewer"),
        (["--grid", "4000x4000"], "--frames and --grid must be 100000000 visual tokens or fewer"),
        (["--method", "visionzip"], "reads the attention of the vision tower, which qwen3-vl-8b does not offer"),
        (["--last", 36], "last must be"),
    ],
)
def test_bad_input(capsys, arguments, message):
    code, out, err = flops(capsys, "--model", "qwen3-vl-8b", *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_a_grid_of_newlines_alone(capsys):
    code, _, err = flops(capsys, "--model", "llava-video-7b", "--grid", "13x1")
    assert code == 2
    assert "--grid must have a column of tokens beside that of newlines, got 13 x 1" in err


@pytest.mark.parametrize("text", ["", "x", "4", "4x", "0x4", "4x-1", "4x4x4", "4,4", "1.5x2"])
def test_a_grid_that_is_none(capsys, text):
    with pytest.raises(SystemExit):
        flops(capsys, "--model", "qwen3-vl-8b", "--grid", text)
    assert f"argument --grid: must be ROWSxCOLUMNS, such as 16x16, got {text!r}" in capsys.readouterr().err
