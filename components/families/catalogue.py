"""Every model family by name. To add one: its file, and its line here."""

from __future__ import annotations

from components.families.classifier import Classifier
from components.families.contract import Family
from components.families.diffusion import Diffusion
from components.families.prior import Prior
from components.families.recognition import Recognition
from components.families.rectified_flow import RectifiedFlow
from components.families.score_sde import ScoreSDE
from components.families.vqgan import VQGAN
from components.families.vqvae import VQVAE

FAMILIES: dict[str, type[Family]] = {
    "classifier": Classifier,
    "diffusion": Diffusion,
    "prior": Prior,
    "recognition": Recognition,
    "rectified_flow": RectifiedFlow,
    "score_sde": ScoreSDE,
    "vqgan": VQGAN,
    "vqvae": VQVAE,
}
