# hugbucket as a static program in an empty image. Any machine that Rust and Alpine know builds it for itself:
#
#   docker build -t hugbucket .
#   docker run -e HF_TOKEN -e AWS_ACCESS_KEY_ID -e AWS_SECRET_ACCESS_KEY -e MODE=s3 -p 9000:9000 hugbucket
#
# docs/gateway.md ("Container") says more. tests/gateway/test_container.py builds the same root by the same scripts.
FROM rust:1.95-alpine AS build
RUN apk add --no-cache ca-certificates g++ make musl-dev
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target \
    container/build /program/hugbucket release && container/root /program/hugbucket /image

FROM scratch
COPY --from=build /image/ /
ENV MODE=s3 \
    HOME=/data \
    XDG_DATA_HOME=/data/state \
    XDG_CACHE_HOME=/data/cache \
    HUGBUCKET_ADMIN_LISTEN=127.0.0.1:8081 \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
VOLUME ["/data"]
EXPOSE 9000 2121 30000-30099
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s CMD ["/usr/bin/hugbucket", "health"]
ENTRYPOINT ["/usr/bin/hugbucket"]
