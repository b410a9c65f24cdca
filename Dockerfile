# The image a cluster runs: head and workers alike, and the pod that submits. Build: docker build -t raymill .
FROM python:3.11-slim-bookworm

# Ray reads /proc through psutil and needs no compiler; wget serves the probes that KubeRay adds to its pods.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray

WORKDIR /opt/raymill
COPY pyproject.toml constraints.txt README.md ./
COPY components components
COPY clusters clusters
COPY pipelines pipelines
RUN pip install --no-cache-dir --constraint constraints.txt '.[aws,tracking]'

USER ray
WORKDIR /home/ray
ENV RAY_AUTH_MODE=token \
    AWS_EC2_METADATA_DISABLED=true
CMD ["raymill", "--help"]
