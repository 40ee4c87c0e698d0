"""Language detection on synthetic speech: five sentences in each of five languages by espeak-ng."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np

from audio_llm import audio
from audio_llm.asr.whisper import WhisperRecognizer

TEXTS = {  # written for this recipe
    "de": (
        "Guten Morgen, heute scheint die Sonne, und wir gehen zusammen in den Park.",
        "Der Zug nach Hamburg fährt in zwanzig Minuten von Gleis sieben ab.",
        "Ich habe gestern ein neues Buch gekauft und die halbe Nacht gelesen.",
        "Können Sie mir bitte sagen, wo die nächste Apotheke ist?",
        "Am Wochenende besuchen wir unsere Großeltern auf dem Land.",
    ),
    "fr": (
        "Bonjour, aujourd'hui il fait beau et nous allons nous promener au parc.",
        "Le train pour Lyon part dans vingt minutes du quai numéro sept.",
        "Hier, j'ai acheté un nouveau livre et j'ai lu la moitié de la nuit.",
        "Pouvez-vous me dire où se trouve la pharmacie la plus proche ?",
        "Ce week-end, nous rendons visite à nos grands-parents à la campagne.",
    ),
    "es": (
        "Buenos días, hoy hace sol y vamos juntos a pasear por el parque.",
        "El tren para Sevilla sale dentro de veinte minutos del andén siete.",
        "Ayer compré un libro nuevo y estuve leyendo la mitad de la noche.",
        "¿Puede decirme, por favor, dónde está la farmacia más cercana?",
        "El fin de semana visitamos a nuestros abuelos en el campo.",
    ),
    "it": (
        "Buongiorno, oggi c'è il sole e andiamo insieme a passeggiare nel parco.",
        "Il treno per Firenze parte tra venti minuti dal binario sette.",
        "Ieri ho comprato un libro nuovo e ho letto per metà della notte.",
        "Può dirmi, per favore, dove si trova la farmacia più vicina?",
        "Nel fine settimana andiamo a trovare i nostri nonni in campagna.",
    ),
    "pl": (
        "Dzień dobry, dzisiaj świeci słońce i idziemy razem do parku.",
        "Pociąg do Krakowa odjeżdża za dwadzieścia minut z peronu siódmego.",
        "Wczoraj kupiłem nową książkę i czytałem przez pół nocy.",
        "Czy może mi pan powiedzieć, gdzie jest najbliższa apteka?",
        "W weekend odwiedzamy naszych dziadków na wsi.",
    ),
}


def run(recognizer: WhisperRecognizer) -> None:
    """Print, for every language, how often it is detected and how probable it is on average."""
    print("| language | detected | mean probability | taken for |\n|---|---|---|---|")
    for code, texts in TEXTS.items():
        stretches = [next(iter(recognizer.recognize_stream([speak(code, text)]))) for text in texts]
        right = [stretch.language_probability or 0.0 for stretch in stretches if stretch.language == code]
        mistaken = ", ".join(stretch.language for stretch in stretches if stretch.language != code)
        mean = sum(right) / max(1, len(right))
        print(f"| {code} | {len(right)} of {len(texts)} | {mean:.2f} | {mistaken} |", flush=True)


def speak(code: str, text: str) -> np.ndarray:
    """Return a text synthesized by espeak-ng, (T,) float32 at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        subprocess.run(["espeak-ng", "-v", code, "-s", "140", "-w", str(path), text], check=True)
        return audio.read(path)
