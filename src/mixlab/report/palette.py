"""The page's colours in light and dark: ink and paper, one slot per model, one ramp for components.

The model slots follow Okabe and Ito's palette for colour-blind readers (https://jfly.uni-koeln.de/color/),
each hue darkened for white paper and lightened for dark, so that every line keeps a contrast of 3:1.
"""

from __future__ import annotations

SLOTS = ("blue", "vermilion", "green", "purple", "amber", "sky", "brown", "olive")

_LIGHT = {
    "paper": "#fdfdfb",
    "card": "#ffffff",
    "ink": "#1b1e23",
    "soft": "#565d68",
    "rule": "#dcdfe3",
    "grid": "#e9ebee",
    "wash": "#f3f4f1",
    "accent": "#0060a8",
    "shade": "#1b1e2338",
    "warn": "#a33a00",
    "neutral": "#6b7280",
    "blue": "#0064ad",
    "vermilion": "#cf5200",
    "green": "#008a64",
    "purple": "#b0528c",
    "amber": "#b98100",
    "sky": "#3494d1",
    "brown": "#7a4a2b",
    "olive": "#6d7a10",
    "part0": "#24404f",
    "part1": "#3f7186",
    "part2": "#7ba3b2",
    "part3": "#b4cad2",
    "part4": "#dde7ea",
}
_DARK = {
    "paper": "#14161a",
    "card": "#1a1d22",
    "ink": "#e8e9ea",
    "soft": "#a3abb6",
    "rule": "#343941",
    "grid": "#2a2e35",
    "wash": "#1e2127",
    "accent": "#6cb6f0",
    "shade": "#000000b8",
    "warn": "#ff9a5c",
    "neutral": "#a0a7b2",
    "blue": "#4a9fe6",
    "vermilion": "#ff7f3a",
    "green": "#2cc295",
    "purple": "#df8fbf",
    "amber": "#ecb22e",
    "sky": "#8fd0f7",
    "brown": "#c2946f",
    "olive": "#b9c552",
    "part0": "#d9e8ee",
    "part1": "#9cc3d1",
    "part2": "#6796a7",
    "part3": "#416472",
    "part4": "#2b424c",
}
THEMES = {"light": _LIGHT, "dark": _DARK}
