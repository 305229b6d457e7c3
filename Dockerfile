# decur on a CPU or a GPU (PyTorch's wheels bring CUDA): docker build -t decur .
#   docker run --rm -v "$PWD":/work decur pretrain --data.root pairs --run runs/mine
FROM python:3.12-slim
WORKDIR /opt/decur
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt \
    ".[eo,rgbd,pack,mit,export,embed,explain]"
WORKDIR /work
ENTRYPOINT ["decur"]
