"""MedSAM and Segment Anything's predictor: the authors' outputs, from files as the authors publish
them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

import limner
import parity
from limner.adapters import sam
from limner.cli.__main__ import run
from limner.errors import CheckpointError, PromptError
from limner.models import Question, View, create_model, medsam
from limner.models.medsam import names
from limner.prompts import Box, Click, MaskPrompt

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")

# In standard deviations; see ../shared/parity/medsam/README.md.
EMBEDDING, LOGITS, CHAINED = 1e-5, 2e-5, 1e-4
MARGIN = 1e-4  # logits so near to 0 may fall on either side


def view_of(picture: np.ndarray) -> View:
    return View(picture, (1.0, 1.0), (0.0, 255.0))


def box_of(corners: Any) -> Box:
    """A box given as x0, y0, x1, y1."""
    x0, y0, x1, y1 = (float(n) for n in corners)
    return Box((y0, x0), (y1, x1))


@dataclass
class Stages:
    """What came in and out of the networks while they ran."""

    values: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: list[np.ndarray] = field(default_factory=list)

    def listen(self, name: str, module: Any) -> None:
        def note(_: Any, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            self.values[name] = first.detach().numpy().copy()

        module.register_forward_hook(note)

    def listen_to(self, encoder: Any) -> None:
        encoder.register_forward_pre_hook(lambda _, given: self.inputs.append(given[0].numpy()))
        self.listen("enc.patch_embed", encoder.patch_embed)
        for index in (0, 2, 11):
            self.listen(f"enc.block{index}", encoder.blocks[index])
        self.listen("embedding", encoder)


@pytest.fixture(scope="module")
def weights() -> Path:
    return parity.system("medsam").checkpoint()


@pytest.fixture(scope="module")
def stages() -> Stages:
    return Stages()


@pytest.fixture(scope="module")
def model(weights: Path, stages: Stages) -> medsam.MedSam:
    """MedSAM in exact arithmetic; what its encoder does is written down."""
    build = medsam.make_network

    def listened(sizes: medsam.Sizes) -> Any:
        network = build(sizes)
        stages.listen_to(network.image_encoder)
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(medsam, "make_network", listened)
        made = create_model("medsam/vit_b", weights=weights, exact=True)
    assert isinstance(made, medsam.MedSam)
    return made


@pytest.fixture(scope="module")
def case() -> parity.Case:
    return parity.system("medsam").case("box")


@dataclass(frozen=True)
class Answered:
    """A session's answers to the boxes of the case, and the stages on the way."""

    logits: list[np.ndarray]
    masks: list[np.ndarray]
    stages: dict[str, np.ndarray]
    embedding: medsam.SamEmbedding


@pytest.fixture(scope="module")
def answered(model: medsam.MedSam, case: parity.Case, stages: Stages) -> Answered:
    picture = parity.picture(case)
    predictions = []
    with limner.open_session(picture, model) as session:
        for number, corners in enumerate(case["boxes"], start=1):
            session.add(box_of(corners), object_id=number)
            predictions.append(session.predict(object_id=number))
    values = {**stages.values, "input": stages.inputs[-1]}
    frame = sam.InputFrame.squashed(picture.shape[:2], medsam.SIZE)
    embedding = medsam.SamEmbedding(values["embedding"], frame)
    questions = [Question([box_of(corners)]) for corners in case["boxes"]]
    logits = [answer.logits for answer in model.segment_batch(embedding, questions)]
    return Answered(logits, [p.mask for p in predictions], values, embedding)


def test_the_picture_is_squashed_as_published(case: parity.Case) -> None:
    for exact in (True, False):
        squashed = medsam.squash(parity.picture(case), medsam.SIZE, exact=exact)
        parity.check(squashed, case, "resized", 1e-12)


@pytest.mark.full_size
@pytest.mark.parametrize("stage", ["input", "enc.patch_embed", "enc.block0", "enc.block2"])
def test_early_stages(answered: Answered, case: parity.Case, stage: str) -> None:
    parity.check(answered.stages[stage], case, stage, EMBEDDING / 2)


@pytest.mark.full_size
def test_embedding(answered: Answered, case: parity.Case) -> None:
    parity.check(answered.stages["enc.block11"], case, "enc.block11", EMBEDDING)
    parity.check(answered.stages["embedding"], case, "embedding", EMBEDDING)


def test_boxes_as_the_network_takes_them(case: parity.Case) -> None:
    frame = sam.InputFrame.squashed(case["image.hw"].tolist(), medsam.SIZE)
    for corners, expected in zip(case["boxes"], case["boxes_1024"], strict=True):
        asked = sam.encode_prompts(medsam.CARD, [box_of(corners)], frame)
        assert asked.labels.tolist() == [2.0, 3.0]
        assert np.abs(asked.coords.ravel() - expected).max() < 1e-4


def test_prompts_as_tokens_and_maps(weights: Path, case: parity.Case) -> None:
    encoder = network_of(weights).prompt_encoder
    coords = torch.tensor(case["boxes_1024"], dtype=torch.float32).reshape(-1, 2, 2)
    with torch.no_grad():
        sparse = encoder.sparse(coords, torch.tensor([[2.0, 3.0]] * len(coords)))
        dense = encoder.dense(torch.zeros(2, 1, 256, 256), torch.zeros(2)).expand(-1, -1, 64, 64)
        assert np.abs(sparse.numpy() - case["sparse"]).max() < 1e-6
        parity.check(dense.numpy(), case, "dense", 1e-6)
        parity.check(encoder.positions().numpy(), case, "dense_pe", 1e-6)


@pytest.mark.full_size
def test_low_resolution_logits(model: medsam.MedSam, answered: Answered, case: parity.Case) -> None:
    asked = [
        sam.encode_prompts(medsam.CARD, [box_of(corners)], answered.embedding.frame)
        for corners in case["boxes"]
    ]
    decoded = sam.decode_prompts(model._decoder, answered.embedding.features, asked)
    parity.check(np.stack([d[0][:1] for d in decoded]), case, "low_res_logits", LOGITS)
    assert np.abs(np.stack([d[1][:1] for d in decoded]) - case["iou"]).max() < 4e-6


@pytest.mark.full_size
def test_probabilities_and_masks(answered: Answered, case: parity.Case) -> None:
    probability = sam.sigmoid(np.stack(answered.logits))[:, None]
    parity.check(probability, case, "probability", LOGITS)
    for index, (logits, mask) in enumerate(zip(answered.logits, answered.masks, strict=True)):
        parity.check_mask(logits, case, "mask", MARGIN, index)
        golden = parity.golden_rule.unpack_mask(case, "mask")[index]
        assert (np.asarray(mask) != golden).sum() <= 3  # a session keeps logits in whole steps


@pytest.mark.full_size
def test_twenty_boxes_together_are_as_each_alone(model: medsam.MedSam, answered: Answered) -> None:
    rng = np.random.default_rng(4)
    low = rng.integers(0, 200, (20, 2))
    boxes = [Box(a, b) for a, b in zip(low, low + rng.integers(20, 170, (20, 2)), strict=True)]
    asked = [sam.encode_prompts(medsam.CARD, [box], answered.embedding.frame) for box in boxes]
    features = answered.embedding.features
    together = sam.decode_prompts(model._decoder, features, asked)
    for question, (logits, quality) in zip(asked[::3], together[::3], strict=True):
        ((alone, judged),) = sam.decode_prompts(model._decoder, features, [question])
        assert np.abs(alone - logits).max() < 1e-5 * alone.std()
        assert np.abs(judged - quality).max() < 1e-5


@pytest.mark.full_size
def test_one_box_is_enough(model: medsam.MedSam, answered: Answered) -> None:
    box = Box((10, 10), (40, 40))
    nothing, something = model.segment_batch(answered.embedding, [Question([]), Question([box])])
    assert not (nothing.logits > 0).any()
    assert (something.logits > 0).any()
    with pytest.raises(PromptError, match=r"one box per object, not 2.*object_id"):
        model.segment(answered.embedding, [box, box])
    with pytest.raises(PromptError, match=r"understands box, not click"):
        model.segment(answered.embedding, [box, Click((20, 20))])


# The predictor of Segment Anything.


@pytest.fixture(scope="module")
def points_case() -> parity.Case:
    return parity.system("medsam").case("points")


@pytest.fixture(scope="module")
def predictor(model: medsam.MedSam) -> medsam.SamPredictor:
    """With the networks of the other adapter: both read the same files."""
    return medsam.SamPredictor(medsam.POINTS_CARD, model._encoder, model._decoder)


@pytest.fixture(scope="module")
def seen(
    predictor: medsam.SamPredictor, points_case: parity.Case, stages: Stages
) -> medsam.SamEmbedding:
    embedding = predictor.embed(view_of(parity.picture(points_case)))
    parity.check(stages.inputs[-1], points_case, "input", 1e-6)
    assert embedding.frame.inside == tuple(points_case["input_size"])
    return embedding


ROUNDS = ("one_click", "moved_click", "three_clicks", "click_prev", "box_click", "mask_only")


def question_of(case: parity.Case, name: str, memory: np.ndarray | None) -> Question:
    prompts: list[Any] = []
    if f"{name}.box" in case:
        prompts.append(box_of(case[f"{name}.box"]))
    for (x, y), label in zip(
        case.get(f"{name}.point_coords", ()), case.get(f"{name}.point_labels", ()), strict=True
    ):
        prompts.append(Click((y, x), bool(label)))
    return Question(prompts, memory=memory)


@pytest.fixture(scope="module")
def rounds(
    predictor: medsam.SamPredictor, seen: medsam.SamEmbedding, points_case: parity.Case
) -> dict[str, Any]:
    """The prompts of the case in order, each with the answer that it refers to."""
    answers: dict[str, Any] = {}
    for name in ROUNDS:
        source = points_case.get(f"{name}.mask_input_from")
        memory = None if source is None else answers[str(source)].memory
        question = question_of(points_case, name, memory)
        (answers[name],) = predictor.segment_batch(seen, [question])
    return answers


@pytest.mark.full_size
def test_embedding_of_the_predictor(seen: medsam.SamEmbedding, points_case: parity.Case) -> None:
    parity.check(seen.features, points_case, "embedding", EMBEDDING)


@pytest.mark.full_size
@pytest.mark.parametrize("name", ROUNDS)
def test_rounds_of_prompts(rounds: dict[str, Any], points_case: parity.Case, name: str) -> None:
    answer = rounds[name]
    best = int(points_case[f"{name}.best"])
    tolerance = CHAINED if name in ("click_prev", "box_click", "mask_only") else LOGITS
    golden = points_case[f"{name}.low_res_best.f16"].astype(np.float32)
    assert np.abs(answer.memory - golden).max() < 2e-3 * np.abs(golden).max()
    channels = int(points_case[f"{name}.logits.shape"][0])
    logits = np.zeros((channels, *answer.logits.shape), np.float32)
    logits[best] = answer.logits
    flat = logits.ravel()[:: parity.golden_rule.sample_step(logits.size)]
    mine = np.zeros(logits.shape, bool)
    mine[best] = True
    here = mine.ravel()[:: parity.golden_rule.sample_step(logits.size)]
    error = np.abs(flat - points_case[f"{name}.logits.sub"])[here]
    assert error.max() <= tolerance * points_case[f"{name}.logits.stat"][1]
    parity.check_mask(answer.logits, points_case, f"{name}.masks", 10 * MARGIN, best)
    assert answer.score == pytest.approx(
        float(np.clip(points_case[f"{name}.iou"][best], 0, 1)), abs=1e-5
    )


@pytest.mark.full_size
def test_all_masks_of_clicks(
    predictor: medsam.SamPredictor, seen: medsam.SamEmbedding, points_case: parity.Case
) -> None:
    """Questions with different numbers of points, asked together."""
    names = ("one_click", "three_clicks", "moved_click")
    asked = [
        sam.encode_prompts(
            medsam.POINTS_CARD, question_of(points_case, n, None).prompts, seen.frame
        )
        for n in names
    ]
    assert [q.labels.tolist() for q in asked] == [[1, -1], [1, 1, 0, -1], [1, -1]]
    for name, (logits, quality) in zip(
        names, sam.decode_prompts(predictor._decoder, seen.features, asked), strict=True
    ):
        parity.check(logits[1:], points_case, f"{name}.low_res_logits", LOGITS)
        assert np.abs(quality[1:] - points_case[f"{name}.iou"]).max() < 5e-6


@pytest.mark.full_size
def test_three_masks_are_proposed_for_clicks_and_one_for_boxes(
    predictor: medsam.SamPredictor, seen: medsam.SamEmbedding, points_case: parity.Case
) -> None:
    click = question_of(points_case, "one_click", None)
    box = Question([Box((60, 40), (220, 200))])
    offered, sure, nothing = predictor.propose(seen, [click, box, Question([])])
    assert (len(offered), len(sure), len(nothing)) == (3, 1, 1)
    for index, (answer, quality) in enumerate(
        zip(offered, points_case["one_click.iou"], strict=True)
    ):
        parity.check_mask(answer.logits, points_case, "one_click.masks", 10 * MARGIN, index)
        assert answer.score == pytest.approx(float(np.clip(quality, 0, 1)), abs=1e-5)
    (chosen, same) = predictor.segment_batch(seen, [click, box])
    best = int(points_case["one_click.best"])
    assert np.array_equal(chosen.logits, offered[best].logits)
    assert np.allclose(same.logits, sure[0].logits, atol=1e-4)
    (some,) = predictor.propose(seen, [click], least=offered[best].score)
    assert {answer.score for answer in some} == {offered[best].score}
    answered = Question(click.prompts, memory=chosen.memory)
    assert [len(answers) for answers in predictor.propose(seen, [answered])] == [1]


@pytest.mark.full_size
def test_a_session_shows_the_answer_before_again(
    predictor: medsam.SamPredictor, seen: medsam.SamEmbedding, points_case: parity.Case
) -> None:
    first, second = Click((200, 120)), Click((100, 250), positive=False)
    once = predictor.segment_batch(seen, [Question([first])])[0]
    twice = predictor.segment_batch(seen, [Question([first, second], memory=once.memory)])[0]

    class Seen(medsam.SamPredictor):
        def embed(self, view: View) -> medsam.SamEmbedding:
            return seen

    model = Seen(medsam.POINTS_CARD, predictor._encoder, predictor._decoder)
    with limner.open_session(parity.picture(points_case), model) as session:
        for click, expected in ((first, once), (second, twice)):
            session.add(click)
            mask = np.asarray(session.predict().mask)
            assert ((expected.logits > 0) != mask).sum() <= 3


@pytest.mark.full_size
def test_rough_masks_and_answers_on_other_views(
    predictor: medsam.SamPredictor, seen: medsam.SamEmbedding, rounds: dict[str, Any]
) -> None:
    before = rounds["click_prev"]
    again = predictor.segment_batch(seen, [Question([], memory=before.memory)])[0]
    resized = predictor.segment(seen, [], before.logits)
    drawn = predictor.segment(seen, [MaskPrompt(before.logits > 0)])
    for other in (resized, drawn):
        same = (other.logits > 0) == (again.logits > 0)
        assert same.mean() > 0.8
    shown = medsam.mask_input(
        Question([MaskPrompt(before.logits > 0)], before.logits, before.memory),
        seen.frame,
        medsam.SIZE // medsam.STEP,
    )
    assert shown is not None
    assert set(np.unique(shown[:-1, :180])) >= {-10.0, 10.0}
    for says_nothing in ([], [MaskPrompt(np.zeros_like(before.logits, bool))]):
        assert not (predictor.segment(seen, says_nothing).logits > 0).any()


# The command line.


@pytest.mark.full_size
def test_segment_command(
    weights: Path, case: parity.Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = tmp_path / "picture.png", tmp_path / "mask.png"
    Picture.fromarray(parity.picture(case)).save(image)
    corners = ",".join(str(int(n)) for n in case["boxes"][1])
    arguments = ["segment", str(image), "--model", "medsam/vit_b", "--weights", str(weights)]
    arguments += ["--box", corners, "--order", "xyz", "-o", str(out), "--exact"]
    assert run(arguments) == 0, capsys.readouterr().err
    golden = parity.golden_rule.unpack_mask(case, "mask")[1]
    assert ((np.asarray(Picture.open(out)) > 0) != golden).sum() <= 3


# Files.


def hugging_face(name: str) -> str:
    """A published name as ``SamModel`` has it, part by part."""
    if name == names._PE:
        return "prompt_encoder.shared_embedding.positional_embedding"
    numbered = {
        "neck": {"0": "conv1", "1": "layer_norm1", "2": "conv2", "3": "layer_norm2"},
        "mask_downscaling": {
            "0": "conv1",
            "1": "layer_norm1",
            "3": "conv2",
            "4": "layer_norm2",
            "6": "conv3",
        },
        "output_upscaling": {"0": "upscale_conv1", "1": "upscale_layer_norm", "3": "upscale_conv2"},
        "layers": {"0": "proj_in", "1": "layers.0", "2": "proj_out"},
    }
    parts = name.split(".")
    head = parts[0]
    if head == "image_encoder":
        parts[0] = "vision_encoder"
        parts = ["layers" if p == "blocks" else "projection" if p == "proj" and k == 2 else p
                 for k, p in enumerate(parts)]  # fmt: skip
    done: list[str] = []
    while parts:
        part = parts.pop(0)
        if part in ("neck", "mask_downscaling", "output_upscaling"):
            outer = {"neck": ["neck"], "mask_downscaling": ["mask_embed"]}.get(part, [])
            done += [*outer, numbered[part][parts.pop(0)]]
        elif part == "layers" and ("hypernetworks" in name or "iou_prediction" in name):
            done.append(numbered["layers"][parts.pop(0)])
        elif part.startswith("norm"):
            done.append("layer_" + part)
        else:
            done.append({"point_embeddings": "point_embed"}.get(part, part))
    return ".".join(done)


def test_hugging_face_names_are_read() -> None:
    published = list(parity.system("medsam").spec["keys"])
    theirs = {hugging_face(name): name for name in published}
    assert len(theirs) == 314
    for name in (
        "vision_encoder.layers.3.layer_norm1.weight",
        "vision_encoder.neck.layer_norm2.bias",
        "prompt_encoder.mask_embed.conv3.weight",
        "mask_decoder.output_hypernetworks_mlps.2.layers.0.weight",
        "mask_decoder.iou_prediction_head.proj_out.bias",
        "mask_decoder.transformer.layer_norm_final_attn.weight",
        "mask_decoder.upscale_layer_norm.weight",
    ):
        assert name in theirs
    assert medsam.remap(theirs) == {name: name for name in published}
    assert medsam.remap({**theirs, names._COPY: names._PE}) == {n: n for n in published}
    del theirs["prompt_encoder.shared_embedding.positional_embedding"]
    assert medsam.remap({**theirs, names._COPY: names._PE}) == {n: n for n in published}


def test_published_names_stay() -> None:
    published = dict.fromkeys(parity.system("medsam").spec["keys"], 0)
    assert medsam.remap({**published, "pixel_mean": 0, "pixel_std": 0}) == published


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return parity.system("medsam").weights()


def test_a_file_of_hugging_face_gives_the_same_network(
    state: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    theirs = {hugging_face(name): value for name, value in state.items()}
    parity.golden_rule.write_checkpoint(path, {}, {**theirs, names._COPY: state[names._PE]})
    assert_same(path, state, np.float32)


def test_half_precision_is_read(state: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    half = {f"module.{name}": torch.from_numpy(v).half() for name, v in state.items()}
    torch.save({"model": half, "optimizer": {}, "epoch": 3}, path)
    assert_same(path, state, np.float16)


def network_of(path: Path) -> torch.nn.Module:
    """The network with the weights of a file."""
    network = medsam.make_network(medsam.Sizes())
    medsam.MEDSAM.file_weights(path).fill(network)
    return network


def assert_same(path: Path, state: dict[str, np.ndarray], kind: type) -> None:
    read = network_of(path).state_dict()
    assert read.keys() == state.keys()
    for name, value in read.items():
        assert value.dtype == torch.float32
        assert np.array_equal(value.numpy(), state[name].astype(kind).astype(np.float32)), name


def test_other_files_are_refused(
    state: dict[str, np.ndarray], weights: Path, tmp_path: Path
) -> None:
    def build(path: Path) -> None:
        create_model("medsam/vit_b", weights=path, exact=True)

    with pytest.raises(CheckpointError, match=r"LiteMedSAM.*medsam/lite"):
        build(parity.system("litemedsam").checkpoint())
    with pytest.raises(CheckpointError, match=r"medsam/vit_b needs.*limner models fetch"):
        create_model("medsam/vit_b")

    cut = tmp_path / "cut.pth"
    with weights.open("rb") as whole:
        cut.write_bytes(whole.read(1_000_000))
    with pytest.raises(CheckpointError, match=r"cut\.pth"):
        build(cut)

    renamed = tmp_path / "renamed.pth"
    odd = {name.replace("mask_tokens", "mask_queries"): v for name, v in state.items()}
    torch.save({name: torch.from_numpy(value).half() for name, value in odd.items()}, renamed)
    with pytest.raises(CheckpointError, match=r"mask_tokens.*mask_queries"):
        build(renamed)


# Pieces.


@pytest.mark.parametrize("shape", [(31, 47), (1, 1), (1, 9), (80, 20)])
def test_squashing_is_scikit_images(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    picture = rng.integers(1, 255, (*shape, 3)).astype(np.uint8)
    for colours in (picture, np.repeat(picture[..., :1], 3, axis=2)):
        exact = medsam.squash(colours, 32, exact=True).astype(int)
        quick = medsam.squash(colours, 32, exact=False).astype(int)
        assert np.abs(exact - quick).max() <= 1
        if shape != (1, 1):
            assert (exact != quick).mean() < 0.02
    same = rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)
    assert np.array_equal(medsam.squash(same, 32, exact=False), same)


@pytest.mark.parametrize("shape", [(9, 20), (3, 3), (7, 5), (1, 1), (40, 2)])
def test_bilinear_is_torchs(shape: tuple[int, int]) -> None:
    planes = np.random.default_rng(1).normal(size=(2, 7, 5)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(planes)[None], shape, mode="bilinear", align_corners=False
    )[0].numpy()
    assert np.allclose(sam.resize_bilinear(planes, shape), expected, atol=1e-6)


def test_log_odds_keep_the_sign_and_are_finite() -> None:
    half = np.float32(0.5)
    p = np.array([0, np.nextafter(half, 0), half, np.nextafter(half, 1), 1], np.float32)
    logits = sam.log_odds(p)
    assert (logits > 0).tolist() == [False, False, False, True, True]
    assert np.isfinite(logits).all()
    assert np.allclose(sam.sigmoid(np.array([-200.0, 0.0, 200.0], np.float32)), [0, 0.5, 1])


def test_eight_bits_are_those_of_the_file_unless_windowed() -> None:
    stored = np.array([[10, 20], [30, 250]], np.uint8)
    grey = sam.to_eight_bit(View(stored, (1, 1), (0.0, 100.0)))
    assert (grey == stored[..., None]).all()
    assert grey.shape == (2, 2, 3)
    windowed = sam.to_eight_bit(View(stored, (1, 1), (10.0, 30.0), windowed=True))
    assert windowed[..., 0].tolist() == [[0, 128], [255, 255]]
    ct = sam.to_eight_bit(View(stored.astype(np.int16) - 20, (1, 1), (-10.0, 10.0)))
    assert ct[..., 2].tolist() == [[0, 128], [255, 255]]
    opaque = np.dstack([np.full((2, 2, 3), 7, np.uint8), stored])
    assert (sam.to_eight_bit(View(opaque, (1, 1), (0.0, 255.0))) == 7).all()
    two = sam.to_eight_bit(View(np.dstack([stored, stored]), (1, 1), (0.0, 255.0)))
    assert (two == stored[..., None]).all()


def test_frames_map_there_and_back() -> None:
    frame = sam.InputFrame.longest((420, 300), 1024)
    assert frame.inside == (1024, 731)
    assert frame.to_xy((210.0, 150.0)) == pytest.approx((365.5, 512.0))
    assert sam.InputFrame.longest((1, 3000), 1024).inside == (1, 1024)
    smooth = np.add.outer(np.linspace(-5, 5, 420), np.linspace(-5, 5, 300)).astype(np.float32)
    low = frame.to_low_res(smooth, 256, outside=-10.0)
    assert (low[:, 184:] == -10).all()
    inner = frame.to_view(low)[8:-8, 8:-8] - smooth[8:-8, 8:-8]
    assert np.abs(inner[:, :-8]).max() < 0.1


def test_boxes_over_the_edge_are_cut() -> None:
    frame = sam.InputFrame.squashed((100, 50), 1024)
    asked = sam.encode_prompts(medsam.CARD, [Box((-20, 10), (50, 70))], frame)
    assert np.allclose(asked.coords, [[204.8, 0.0], [1024.0, 512.0]])


def test_a_drawn_mask_counts_until_it_is_answered() -> None:
    mask, click = MaskPrompt(np.ones((2, 2), bool)), Click((0, 0))
    assert sam.rough_mask([mask, click], answered=False) is mask
    assert sam.rough_mask([mask, click], answered=True) is None
    assert sam.rough_mask([click, mask], answered=True) is mask
    assert sam.rough_mask([click], answered=False) is None
