"""The faces that glyphs are drawn in: where Debian packages put them, whether they train or test, and what they descend from.

No face for testing has a design or a maker in common with one for training. Fonts that derive from one of the others are left out: Takao
(IPA), WenQuanYi Micro Hei (Droid), Klee (LXGW WenKai), the older AR PL fonts (UMing, UKai), and those that look too much alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Face:
    """One face of a font file; `lineage` names the design that it is, or derives from."""

    name: str
    package: str
    file: str
    index: int
    role: Literal["train", "test"]
    lineage: str


FACES = (
    Face("Noto Sans CJK SC", "fonts-noto-cjk", "NotoSansCJK-Regular.ttc", 2, "train", "source-han-sans"),
    Face("Noto Sans CJK JP Bold", "fonts-noto-cjk", "NotoSansCJK-Bold.ttc", 0, "train", "source-han-sans"),
    Face("Noto Serif CJK SC", "fonts-noto-cjk", "NotoSerifCJK-Regular.ttc", 2, "train", "source-han-serif"),
    Face("Noto Serif CJK TC Bold", "fonts-noto-cjk", "NotoSerifCJK-Bold.ttc", 3, "train", "source-han-serif"),
    Face("WenQuanYi Zen Hei", "fonts-wqy-zenhei", "wqy-zenhei.ttc", 0, "train", "zenhei"),
    Face("Droid Sans Fallback", "fonts-droid-fallback", "DroidSansFallbackFull.ttf", 0, "train", "droid"),
    Face("AR PL UMing TW", "fonts-arphic-uming", "uming.ttc", 2, "train", "arphic-ming"),
    Face("BabelStone Han", "fonts-babelstone-han", "BabelStoneHan.ttf", 0, "train", "arphic-ming"),
    Face("AR PL UKai CN", "fonts-arphic-ukai", "ukai.ttc", 0, "train", "arphic-kai"),
    Face("IPAmj Mincho", "fonts-ipamj-mincho", "ipamjm.ttf", 0, "train", "ipa"),
    Face("IPA Gothic", "fonts-ipafont-gothic", "ipag.ttf", 0, "train", "ipa"),
    Face("LXGW WenKai", "fonts-lxgw-wenkai", "LXGWWenKai-Regular.ttf", 0, "train", "klee"),
    Face("SetoFont", "fonts-seto", "setofont.ttf", 0, "train", "seto"),
    Face("Kiloji", "fonts-kiloji", "kiloji.ttf", 0, "train", "kiloji"),
    Face("Ume Gothic O5", "fonts-horai-umefont", "ume-tgo5.ttf", 0, "train", "ume"),
    Face("Ume Mincho", "fonts-horai-umefont", "ume-tmo3.ttf", 0, "train", "ume"),
    Face("VL Gothic", "fonts-vlgothic", "VL-Gothic-Regular.ttf", 0, "train", "mplus"),
    Face("Kouzan Brush", "fonts-kouzan-mouhitsu", "kouzan-mouhitsu.ttf", 0, "train", "kouzan"),
    Face("HanaMin A", "fonts-hanazono", "HanaMinA.ttf", 0, "test", "hanazono"),
    Face("TW-Kai", "fonts-cns11643-kai", "TW-Kai-98_1.ttf", 0, "test", "tw-kai"),
    Face("Motoya L Cedar", "fonts-motoya-l-cedar", "MTLc3m.ttf", 0, "test", "motoya"),
    Face("cwTeX FangSong", "fonts-cwtex-fs", "cwfs.ttf", 0, "test", "cwtex"),
)
