"""Contrast of text as a browser shows it, after WCAG 2.2, section 1.4.3."""

import re

# In the page: [text, colour of the text, colour of what lies behind it] of all that is shown.
COLOURS = """() => {
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || !e.checkVisibility() || e.closest("title, script")) continue;
    let behind = e;
    while (behind && getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
    const style = getComputedStyle(e);
    found.push([e.textContent, e.closest("svg") ? style.fill : style.color, getComputedStyle(behind).backgroundColor]);
  }
  return found;
}"""


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)" by WCAG 2.2."""
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(ink: str, ground: str) -> float:
    """1 (no difference) to 21 (black on white)."""
    lighter, darker = sorted((luminance(ink), luminance(ground)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)
