"""Trained models of audio-llm as ONNX files with a JSON contract, compared with the networks they come from."""

from __future__ import annotations

from audio_llm_export.export import DEFAULT_MODEL, Exported, export_gridnet, export_tse

__all__ = ["DEFAULT_MODEL", "Exported", "export_gridnet", "export_tse"]
