# shellcheck shell=bash
# How scripts talk to the container engine: sourced, never run. The engine's own API over its socket,
# because an engine does not always come with the `docker` command.

# The path of the engine's unix socket; empty when DOCKER_HOST names another kind of address.
engine_socket() {
    case "${DOCKER_HOST:-}" in
        '') echo /var/run/docker.sock ;;
        unix://*) echo "${DOCKER_HOST#unix://}" ;;
        *) ;;
    esac
}

# engine_get PATH [FILTERS]: the answer's body; FILTERS is JSON. Fails when the engine does not answer.
engine_get() {
    local socket url=http://engine
    local ask=(curl -fsS -G --noproxy '*' --max-time 20)
    socket=$(engine_socket)
    if [ -n "$socket" ]; then
        ask+=(--unix-socket "$socket")
    else
        url="http://${DOCKER_HOST#*://}"
    fi
    if [ -n "${2:-}" ]; then
        ask+=(--data-urlencode "filters=$2")
    fi
    "${ask[@]}" "$url$1"
}

# engine_holds KIND LABEL: whether containers or networks with this label exist.
engine_holds() {
    local path answer
    case "$1" in
        containers) path='/containers/json?all=true' ;;
        networks) path='/networks' ;;
        *) return 2 ;;
    esac
    answer=$(engine_get "$path" "{\"label\":[\"$2\"]}") || return 2
    [ "$answer" != '[]' ]
}
