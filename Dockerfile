# syntax=docker/dockerfile:1
# limn with TLS and SASL. Written against the documented official images; no Docker engine was at hand where it was
# written, so it was never built there.
#
#   docker build -t limn .
#   docker run --rm -v ./limn.toml:/etc/limn/limn.toml:ro -v ./models:/models:ro -v limn-state:/var/lib/limn limn
#
# No model is in the image: mount one, or name a server (engine.kind = "openai").

# As old as Cargo.toml's rust-version allows, so that the image is built with what the project promises to build with.
ARG RUST=1.89
ARG DEBIAN=bookworm

# The full image brings what the C parts need: a C and C++ compiler, make and bash for librdkafka, perl for OpenSSL (the
# feature `tls` builds it from source). protoc is not needed: protox compiles proto/ in build.rs.
FROM rust:${RUST}-${DEBIAN} AS build
WORKDIR /src
COPY . .
# The caches outlive the build, so a second one compiles limn alone; what is kept of the first is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --profile production --locked --features tls --bin limn \
    && install -D target/production/limn /out/limn

# The same Debian as the builder's: the binary is linked with its glibc.
FROM debian:${DEBIAN}-slim
# For brokers whose certificate a public authority signed: kafka.properties."ssl.ca.location" = "probe" finds these.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
# A number, so that Kubernetes' runAsNonRoot can tell that it is not root.
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /var/lib/limn limn \
    && install -d -o limn -g limn /var/lib/limn /etc/limn
COPY --from=build /out/limn /usr/local/bin/limn
COPY LICENSE /usr/share/doc/limn/LICENSE
USER 10001:10001
# store.folder is relative unless the configuration says otherwise: the state lies in /var/lib/limn/limn-state.
WORKDIR /var/lib/limn
VOLUME /var/lib/limn
# So that `limn check`, `limn topics` and the others find the configuration without --config. Beside it `limn profile`
# takes no --url: inside the container it asks the instance that the configuration names.
ENV LIMN_CONFIG=/etc/limn/limn.toml
EXPOSE 7374
# SIGTERM is the default, and what limn drains on. There is no HEALTHCHECK: where limn listens is configuration, the
# one-shot commands of this image listen nowhere, and Kubernetes does not look at it. docker-compose.yml has one.
ENTRYPOINT ["limn"]
CMD ["run"]
