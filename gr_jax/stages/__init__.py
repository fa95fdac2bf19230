"""One function a stage: configs and a workdir in, an artifact out."""
