"""The words that IMIS-Net knows: label names of its training sets, and CLIP's token numbers.

A label is named in one fixed sentence. Which names there are, and which names of the data sets
mean the same, was read from the authors' table of categories; the numbers are those of CLIP's
tokenizer (https://github.com/openai/CLIP), so none is needed to run the model.
"""

from __future__ import annotations

import difflib
import logging
import re
from functools import cache

from limner.errors import PromptError

_log = logging.getLogger(__name__)

START, END = 49406, 49407  # CLIP's marks around a sentence

# A name = other words for it. A star is "left" and "right"; the side may also follow the name.
_TABLE = """
adrenal gland = adrenal
* adrenal gland
airway
aorta
ascending aorta = heart ascending aorta
* atrium = heart atrium *, heart * atrium blood cavity
* autochthonous muscles = autochthon *
background
bain stem = brainstem
bladder = urinary bladder
brain
brain aneurysm = aneurysm, treated aneurysm
* breast
breast tumor
* clavicle = clavicula *
* cochlea
colon
* crystalline lens = * lens, lens *
duodenum
edema
enhancing tumor
esophagus
* eustachian tube
* eye
face
* femur = head of femur *
gallbladder = gall bladder
glioma
* gluteus maximus
* gluteus medius
* gluteus minimus
heart
* hip
* hippocampus
* humerus
hypoxic ischemic encephalopathy = brain tumor
* iliac artery
* iliac vein = iliac vena *
* iliopsoas
inferior vena cava = postcava
* inner ear
* internal auditory canal
kidney
* kidney
kidney cyst
kidney tumor
large bowel
larynx
larynx glottis = larynx glottic
larynx supraglot
left ventricular myocardial edema
left ventricular myocardial scars
left ventricular myocardium = heart left ventricular myocardium, heart myocardium left
left ventricular myocardium = left ventricular normal myocardium
liver
liver tumor
* lower lobe = lung lower lobe *
* lung
lung = lung vessel, thoracic cavity
lung infections
* main bronchus = bronchus *
* mandible
* mastoid
* middle ear
* middleear
myocardial infarction
myocardium = heart myocardium
necrosis
necrotic tumor core
neuroblastoma
no reflow
non enhancing tumor
optic chiasm = optical chiasma
optic cup
optic disc
* optic nerve = * optical nerve
oral cavity
pancreas
* parotid gland = parotid *
peritumoral edema
pharyngeal constrictor muscles = pharyngeal const
pharynx
pituitary gland = pituitary
pleural effusion
polyp
portal and splenic veins = portal vein and splenic vein
portal veins = portal vein
prostate
prostate and uterus
prostate anterior fibromuscular stroma
prostate peripheral zone
prostate transition zone
prostatic urethra
pulmonary artery
rectum
resection cavity
right middle lobe = lung middle lobe right
sacrum
* scapula
skin lesion
small intestine = intestine, small bowel
spinal cord
spleen
stomach
* submandibular gland = submandibular *
* temporal lobe = * temporal lobes
* temporomandibular joint
testicle
thyroid gland = thyroid
thyroid nodule
trachea
* tympanic cavity
* upper lobe = lung upper lobe *
* ventricle = heart * ventricle blood cavity, heart ventricle *, * ventricular blood pool
* vestibular semicircular canal
"""
_NUMBERED = (
    ("* rib", "", range(1, 13)),
    ("vertebrae", "c", range(1, 8)),
    ("vertebrae", "l", range(1, 7)),
    ("vertebrae", "t", range(1, 14)),
)
_SPELT = {"bain stem": "brain stem"}  # shown to people; the network learnt the other spelling
_MISLEADING = "brain tumor"  # means another thing than it says, in the authors' table
_TOKENS = """
. 269, 0 271, 1 272, 2 273, 3 274, 4 275, 5 276, 6 277, 7 278, 8 279, 9 280, a 320, adrenal 24204
566, airway 1281 923, and 537, aneurysm 5846 565 23842, anterior 46508 2498, aorta 32044 1397,
area 2445, artery 40062, ascending 20767 796, atrium 29725, auditory 12505 1985, autochthonous
3917 540 38776 879, background 5994, bain 21593, bladder 33593, bowel 36880, brain 4812, breast
9475, bronchus 4011 36246, c 322, canal 9535, cava 48682, cavity 43156, chiasm 1337 13851,
clavicle 940 1555 579, cochlea 18599 13324, colon 29050, constrictor 616 2607 1208, cord 11181,
core 5000, crystalline 15891 48182, cup 1937, cyst 1470 545, disc 10712, duodenum 691 78 1177
1008, ear 8373, edema 29632 1226, effusion 1490 9364, encephalopathy 6495 19962 28466, enhancing
25986, esophagus 957 38634 8018, eustachian 1506 522 972 1800, eye 3272, face 1710, femur 623
18293, fibromuscular 21294 30606, gallbladder 3011 33593, gland 41441, glioma 5896 5358, glottis
1721 971 533, gluteus 5952 600 718, heart 1936, hip 6584, hippocampus 28398 4560, humerus 845 1316
718, hypoxic 10252 87 1029, iliac 2076 2816, iliopsoas 2076 676 759 601, infarction 1529 516 1569,
infections 22227, inferior 16258 2498, inner 6955, internal 11285, intestine 1598 7098, ischemic
595 983 3816, joint 6640, kidney 14610, l 331, large 3638, larynx 1592 2823 343, left 1823, lens
8666, lesion 534 1015, liver 12639, lobe 46325, lower 4909, lung 16271, main 2623, mandible 38961
1059, mastoid 577 928 1014, maximus 44312, medius 1436 718, middle 3694, middleear 2983 6224 625,
minimus 1810 8103, muscles 16786, myocardial 16206 6211 566, myocardium 16206 811 2903, necrosis
557 1192 2580, necrotic 557 1192 1550, nerve 18571, neuroblastoma 7401 2205 43545, no 871, nodule
578 691 579, non 3353, of 539, optic 24755, oral 6007, pancreas 27708 601, parotid 17429 23727,
peripheral 43901, peritumoral 703 1668 11246, pharyngeal 5570 2823 619 566, pharynx 5570 2823 343,
pituitary 79 1668 17604, pleural 926 33948, polyp 6833 335, portal 14982, prostate 28808,
prostatic 644 16363, pulmonary 39132, rectum 1020 8843, reflow 4067 1042, resection 515 4853, rib
18298, right 1155, sacrum 3632 11233, scapula 35883 9506, scars 20747, segmentation 10551 9512,
semicircular 26967 582 10940, skin 3575, small 2442, spinal 23925, spleen 588 15940, splenic 18552
1029, stem 6761, stomach 14722, stroma 3121 1226, submandibular 1783 38961 32187, supraglot 605
1865 1721 339, t 339, temporal 43656, temporomandibular 4858 22088 570 32187, testicle 42364 579,
thyroid 32558, trachea 752 39580, transition 11391, tube 3308, tumor 22616, tympanic 1260 1037
23113, upper 7067, urethra 5514 32797, uterus 39197 718, vein 29169, veins 28867, vena 47442,
ventricle 1240 9511 579, ventricular 1240 9511 4927, vertebrae 35158 40040, vestibular 40349
32187, zone 4442
"""


@cache
def names() -> tuple[str, ...]:
    """All names, in lower case, such as ``"left kidney"``; the network learnt sentences of them."""
    return tuple(dict.fromkeys(_words().values()))


@cache
def find(text: str) -> str:
    """The name that a word means, ignoring case, ``_`` and ``-``.

    Args:
        text: a name, or a label of the training sets such as ``"kidney_right"``.

    Raises:
        PromptError: not known; the message lists the closest words, then all.
    """
    word = " ".join(re.sub(r"[_-]", " ", text.lower()).split())
    known = _words()
    if word == _MISLEADING:
        _log.warning("imis/vit_b reads %r as %r, as its authors do.", text, known[word])
    if word in known:
        return known[word]
    listed = ", ".join(_summary())
    close = dict.fromkeys(known[w] for w in difflib.get_close_matches(word, known, n=5))
    hint = f"Did you mean {' or '.join(display_name(n) for n in close)}? " if close else ""
    raise PromptError(
        f"imis/vit_b does not know {text!r}. {hint}It knows {len(names())} words: {listed}."
    )


def display_name(name: str) -> str:
    """A name as people spell it."""
    return _SPELT.get(name, name)


def token_ids(name: str) -> tuple[int, ...]:
    """CLIP's numbers of the sentence about a name, marks included; at most 77."""
    pieces = re.findall(r"[a-z]+|[0-9]|[.]", f"a segmentation area of a {name}.")
    table = _tokens()
    return (START, *(number for piece in pieces for number in table[piece]), END)


@cache
def _words() -> dict[str, str]:
    """Every understood word, and the name that it means."""
    found: dict[str, str] = {}
    lines = _TABLE.strip().splitlines()
    lines += [f"{what} {letter}{k}" for what, letter, numbers in _NUMBERED for k in numbers]
    for line in lines:
        name, _, others = line.partition(" = ")
        patterns = [name, *(o for o in others.split(", ") if o)]
        if not name.startswith("* "):
            found |= dict.fromkeys(patterns, name)
            continue
        core = name.removeprefix("* ")
        if core.startswith("rib "):
            patterns.append(core.replace("rib", "rib *"))
        else:
            patterns.append(f"{core} *")
        for side in ("left", "right"):
            own = name.replace("*", side)
            found |= dict.fromkeys((p.replace("*", side) for p in patterns), own)
    return found | {right: wrong for wrong, right in _SPELT.items()}


def _summary() -> list[str]:
    """The names, short enough to read: both sides and all numbers together."""
    listed = [line.partition(" = ")[0] for line in _TABLE.strip().splitlines()]
    listed = [display_name(name).replace("*", "left/right") for name in listed]
    for what, letter, numbers in _NUMBERED:
        span = f"{letter}{numbers[0]} to {letter}{numbers[-1]}"
        listed.append(f"{what.replace('*', 'left/right')} {span}")
    return list(dict.fromkeys(listed))


@cache
def _tokens() -> dict[str, tuple[int, ...]]:
    entries = " ".join(_TOKENS.split()).split(", ")
    pairs = (entry.partition(" ") for entry in entries)
    return {word: tuple(int(n) for n in numbers.split()) for word, _, numbers in pairs}
