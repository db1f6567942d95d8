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

# engine_ask PATH CURL_FLAG…: the answer's body. Fails when the engine does not answer.
engine_ask() {
    local socket path=$1 url=http://engine
    shift
    local ask=(curl -sS --noproxy '*' --max-time 20 "$@")
    socket=$(engine_socket)
    if [ -n "$socket" ]; then
        ask+=(--unix-socket "$socket")
    else
        url="http://${DOCKER_HOST#*://}"
    fi
    "${ask[@]}" "$url$path"
}

# engine_get PATH [FILTERS]: the answer's body; FILTERS is JSON. Fails when the answer is an error, too.
engine_get() {
    local filters=()
    if [ -n "${2:-}" ]; then filters=(--data-urlencode "filters=$2"); fi
    engine_ask "$1" -f -G "${filters[@]}"
}

# engine_platforms: those that have something on the engine, by the labels of their parts.
engine_platforms() {
    {
        engine_get '/containers/json?all=true'
        engine_get /networks
    } | grep -oE '"epsilon\.(vm|builder)":"[^"]*"' | sort -u
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

# engine_miscounts LABEL: whether all that has this label are networks that nothing is in and that the engine refuses to
# remove because something is. Docker 20.10 can miscount when many containers come and go at once; it notices at its own
# next start ("Fixing inconsistent endpoint_cnt"). A network from before that start can be removed by now; the removal that was due
# had been refused. A network of this life of the engine that can be removed is removed by this question, and is no miscount.
engine_miscounts() {
    local networks id made started
    if engine_holds containers "$1"; then return 1; fi
    # The engine makes its own bridge anew at each start.
    started=$(engine_created bridge) || return 1
    networks=$(engine_get /networks "{\"label\":[\"$1\"]}" | grep -oE '"Id":"[0-9a-f]{64}"' | cut -d'"' -f4) || return 1
    for id in $networks; do
        made=$(engine_created "$id") || return 1
        if ! engine_ask "/networks/$id" -X DELETE | grep -q 'has active endpoints' && [[ ! "$made" < "$started" ]]; then return 1; fi
    done
}

# engine_created NETWORK: when it was made, as a text that sorts by time.
engine_created() {
    engine_get "/networks/$1" | grep -oE '"Created":"[^"]+"' | head -n 1 | cut -d'"' -f4
}
