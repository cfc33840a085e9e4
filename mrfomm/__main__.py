"""The list of commands: `python -m mrfomm`."""

COMMANDS = {
    "python animate.py": "animate a face (installed: mrfomm-animate)",
    "python train.py": "train a model (mrfomm-train)",
    "python reconstruct.py": "rebuild test clips (mrfomm-reconstruct)",
    "python -m eval": "score models (mrfomm-eval)",
    "python -m mrfomm.app": "a page for the browser (mrfomm-app)",
    "python -m mrfomm.data.prepare": "cut raw videos into face clips",
    "python -m mrfomm.heads": "render heads to train and score with",
    "python -m mrfomm.convert": "convert foreign weights",
    "python -m mrfomm.export": "export a model to ONNX",
    "python -m mrfomm.provenance": "what a result was made from",
}

if __name__ == "__main__":
    for name, text in COMMANDS.items():
        print(f"{name:<32}{text}")
    print("\nEach takes --help.")
