"""Every model family by name. To add one: its file, and its line here."""

from __future__ import annotations

from components.families.autoregressive import Autoregressive
from components.families.classifier import Classifier
from components.families.contract import Family
from components.families.diffusion import Diffusion
from components.families.flow import Flow
from components.families.gan import GAN
from components.families.prior import Prior
from components.families.recognition import Recognition
from components.families.rectified_flow import RectifiedFlow
from components.families.score_sde import ScoreSDE
from components.families.vqgan import VQGAN
from components.families.vqvae import VQVAE
from components.families.wgan import WGAN

FAMILIES: dict[str, type[Family]] = {
    "autoregressive": Autoregressive,
    "classifier": Classifier,
    "diffusion": Diffusion,
    "flow": Flow,
    "gan": GAN,
    "prior": Prior,
    "recognition": Recognition,
    "rectified_flow": RectifiedFlow,
    "score_sde": ScoreSDE,
    "vqgan": VQGAN,
    "vqvae": VQVAE,
    "wgan": WGAN,
}
