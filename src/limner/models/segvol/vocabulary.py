"""The names of structures that SegVol was trained with, and CLIP's token numbers of them.

Any words may be given, in one fixed sentence; those of the list are what the network has seen.
Names were read from the list of data sets that the authors trained with (M3D-Seg), the numbers are
those of CLIP's tokenizer (https://github.com/openai/CLIP), so none is needed for these names, nor
for others that are made of the same words; for the rest see `limner.models.segvol.tokens`.
"""

from __future__ import annotations

import difflib
import re
from functools import cache

START, END = 49406, 49407  # CLIP's marks around a sentence
PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")  # CLIP's, nearly

# A star is "left" and "right".
_NAMES = """
additional 13th thoracic vertebra T13, adrenal, * adrenal gland, adrenal gland *, anterior eyeball
*, aorta, artery, arytenoid, autochthon *, biliary system, bladder, bone, bone mandible, brain,
brainstem, buccal mucosa, carotid artery *, cervical esophagus, clavicula *, coccygis, cochlea *,
colon, colon cancer, cricopharyngeal inlet, duodenum, esophagus, face, femur *, gall bladder,
gallbladder, gluteus maximus *, gluteus medius *, gluteus minimus *, head of femur *, heart, heart
atrium *, heart myocardium, heart ventricle *, hepatic vessels, hip *, humerus *, iliac artery *,
iliac vena *, iliopsoas *, inferior vena cava, intestine, kidney, * kidney, kidney *, kidney cyst,
kidney tumor, kidneys, lacrimal gland *, larynx glottis, larynx supraglottic, lips, liver, liver
cyst, liver tumor, liver tumors, * lung, lung lower lobe *, lung middle lobe right, lung tumours,
lung upper lobe *, lungs, metal, optic chiasm, optic nerve *, oral cavity, pancreas, pancreatic
lesion, parotid gland *, pituitary gland, portal vein, portal vein and splenic vein, postcava,
posterior eyeball *, prostate or uterus, pulmonary artery, rectum, renal artery, renal vein,
sacrum, scapula *, skin, small bowel, small intestin, spinal cord, spleen, stomach, stones,
submandibular gland *, suprarenal gland, * suprarenal gland, * suprarenal tumor, thyroid, trachea,
tumor, tumour, urinary bladder, uterus, vena cava, venous system
"""
_NUMBERED = (
    ("rib *", "", range(1, 13)),
    ("vertebrae", "C", range(1, 8)),
    ("vertebrae", "T", range(1, 13)),
    ("vertebrae", "L", range(1, 6)),
    ("cervical spine", "C", range(1, 8)),
    ("thoracic spine", "T", range(1, 13)),
    ("lumbar spine", "L", range(1, 7)),
)
_SENTENCE = "a computerized tomography of a {}."
_TOKENS = """
. 269, 0 271, 1 272, 2 273, 3 274, 4 275, 5 276, 6 277, 7 278, 8 279, 9 280, a 320, additional
10666, adrenal 24204 566, and 537, anterior 46508 2498, aorta 32044 1397, artery 40062, arytenoid
4617 1149 14758, atrium 29725, autochthon 3917 540 8924, biliary 65 32585, bladder 33593, bone 6195,
bowel 36880, brain 4812, brainstem 1195 27030, buccal 609 2976 566, c 322, cancer 3148, carotid 811
19567 323, cava 48682, cavity 43156, cervical 35953, chiasm 1337 13851, clavicula 940 1555 9506,
coccygis 23036 1470 12773, cochlea 18599 13324, colon 29050, computerized 11639 704 7690, cord
11181, cricopharyngeal 4328 676 915 2823 619 566, cyst 1470 545, duodenum 691 78 1177 1008,
esophagus 957 38634 8018, eyeball 5034 1069, face 1710, femur 623 18293, gall 33374, gallbladder
3011 33593, gland 41441, glottis 1721 971 533, gluteus 5952 600 718, head 1375, heart 1936, hepatic
17724 2647, hip 6584, humerus 845 1316 718, iliac 2076 2816, iliopsoas 2076 676 759 601, inferior
16258 2498, inlet 35161, intestin 1598 4025, intestine 1598 7098, kidney 14610, kidneys 3948 12616,
l 331, lacrimal 4477 553 3796, larynx 1592 2823 343, left 1823, lesion 534 1015, lips 8847, liver
12639, lobe 46325, lower 4909, lumbar 36231 625, lung 16271, lungs 27366, mandible 38961 1059,
maximus 44312, medius 1436 718, metal 4044, middle 3694, minimus 1810 8103, mucosa 670 622 1344,
myocardium 16206 811 2903, nerve 18571, of 539, optic 24755, or 541, oral 6007, pancreas 27708 601,
pancreatic 49337, parotid 17429 23727, pituitary 79 1668 17604, portal 14982, postcava 3489 48682,
posterior 22881 2498, prostate 28808, pulmonary 39132, rectum 1020 8843, renal 36096, rib 18298,
right 1155, sacrum 3632 11233, scapula 35883 9506, skin 3575, small 2442, spinal 23925, spine 19646,
spleen 588 15940, splenic 18552 1029, stomach 14722, stones 6885, submandibular 1783 38961 32187,
supraglottic 605 1865 1721 83 1550, suprarenal 605 1865 36096, system 2422, t 339, th 640, thoracic
4130 546 1029, thyroid 32558, tomography 999 22399, trachea 752 39580, tumor 22616, tumors 39894,
tumour 45129, tumours 12932 1491, upper 7067, urinary 565 11337, uterus 39197 718, vein 29169, vena
47442, venous 1240 879, ventricle 1240 9511 579, vertebra 35158 5860, vertebrae 35158 40040, vessels
22822
"""


@cache
def names() -> tuple[str, ...]:
    """The names of the training sets, such as ``"left kidney"``."""
    found = []
    listed = " ".join(_NAMES.split()).split(", ")
    listed += [f"{what} {letter}{k}" for what, letter, numbers in _NUMBERED for k in numbers]
    for name in listed:
        sides = ("left", "right") if "*" in name else ("",)
        found += [name.replace("*", side) for side in sides]
    return tuple(found)


def find(text: str) -> str:
    """The name that a text means, ignoring case, ``_`` and ``-``; the text itself if none."""
    return _known().get(_plain(text), text)


def is_trained(text: str) -> bool:
    """Whether the network has seen the name."""
    return _plain(text) in _known()


def unknown(text: str) -> str:
    """What to tell people about a word that the network has not seen."""
    close = difflib.get_close_matches(_plain(text), _known(), n=4, cutoff=0.5)
    hint = f" Names like it: {', '.join(_known()[word] for word in close)}." if close else ""
    return (
        f"SegVol was not trained with {text!r} and may find nothing, or something else.{hint} "
        f"All {len(names())} names are in docs/models.md."
    )


def pieces(text: str) -> list[str]:
    """The sentence about a structure, cut as CLIP's tokenizer does before it looks up parts."""
    return PIECES.findall(_SENTENCE.format(text.lower()))


def known_tokens(text: str) -> tuple[int, ...] | None:
    """CLIP's numbers of the sentence about a structure, marks included; None where a word is not
    among those of the trained names.
    """
    table = _tokens()
    found = [table.get(piece) for piece in pieces(text)]
    if any(numbers is None for numbers in found):
        return None
    return (START, *(number for numbers in found if numbers for number in numbers), END)


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[_-]", " ", text.lower()).split())


@cache
def _known() -> dict[str, str]:
    return {name.lower(): name for name in names()}


@cache
def _tokens() -> dict[str, tuple[int, ...]]:
    entries = " ".join(_TOKENS.split()).split(", ")
    pairs = (entry.partition(" ") for entry in entries)
    return {word: tuple(int(n) for n in numbers.split()) for word, _, numbers in pairs}
