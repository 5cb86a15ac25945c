# Your application, with what it imports and installs. The base image is made by the file Dockerfile:
#   docker build -f Dockerfile.app -t my-hooks .
FROM millis-hooks:1
USER 0
COPY requirements.txt /app/
RUN pip install --no-cache-dir --requirement /app/requirements.txt
COPY . /app/
USER 10001
