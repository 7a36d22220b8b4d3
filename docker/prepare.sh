#!/usr/bin/env bash
# Set-up on a fresh Debian or Ubuntu: what `make` needs, in stages that say nothing when there is nothing
# to do. Knows the machine (apt, Docker engine, images, venv), and nothing about calls.
#
#   docker/prepare.sh venv            .venv with pbxguard, the lab and the development tools
#   docker/prepare.sh engine          a Docker engine that answers on a local socket
#   docker/prepare.sh images          the lab's images
#   docker/prepare.sh freeswitch      the lab's FreeSWITCH image where it can be had: a miss is one line and exit 0,
#                                     and is not tried again for a day
#   docker/prepare.sh freeswitch-now  the same at once; a miss is exit 3
#   docker/prepare.sh test-tools      what single tests need besides: Chromium, Node.js with npm; a miss is one line
#                                     and exit 0, and is not tried again for a day
#   docker/prepare.sh engine-stop     stops a dockerd that `engine` started itself, no other
#   docker/prepare.sh images-remove   removes the images that set-up made, no other
#   docker/prepare.sh tag IMAGE       prints the tag of one lab image: pbxguard/IMAGE:<hash of its folder>
#   docker/prepare.sh run COMMAND...  runs COMMAND with the engine that `engine` found
#
# Exit: 0 done, 2 usage, 3 something needed is not there and cannot be had.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly TREE=$PWD
readonly LOG=$TREE/.state/setup.log
readonly STAMP=.venv/pbxguard.stamp
readonly ENGINE_LOG=/var/log/pbxguard-dockerd.log
readonly ENGINE_PID=$TREE/.state/dockerd.pid
readonly ENGINE_LIMIT=60 # seconds that a new engine may take to answer
readonly PULL_LIMIT=45   # seconds for the base image; past them a local one is made
readonly SUITE=sid
readonly BASE=debian:$SUITE-slim
readonly NAMES=pbxguard # the images are $NAMES/asterisk and so on
readonly IMAGES=(asterisk softphone)
readonly FREESWITCH=$NAMES/freeswitch:latest
readonly FREESWITCH_LIMIT=90 # seconds for the image, its base included
readonly FREESWITCH_MISS=$TREE/.state/freeswitch-miss # which recipe could not be built; its age counts
readonly TOOLS_MISS=$TREE/.state/test-tools-miss # which packages could not be had; its age counts
readonly MISS_MINUTES=1440   # the age up to which it is not tried again
readonly SYSTEM_SOCKET=unix:///var/run/docker.sock

# ---- telling -----------------------------------------------------------------------------------------

say() { printf 'pbxguard set-up: %s\n' "$*" >&2; }

fail() {
    say "$*"
    exit 3
}

# step TEXT COMMAND...: one line at the start, one each 15 s, one at the end; the output goes to the log.
step() {
    local text=$1 start=$SECONDS job rc=0 tick=0
    shift
    say "$text ..."
    "$@" >>"$LOG" 2>&1 </dev/null &
    job=$!
    while kill -0 "$job" 2>/dev/null; do
        sleep 0.2
        tick=$((tick + 1))
        if ((tick % 75 == 0)); then say "$text ... $((SECONDS - start)) s"; fi
    done
    wait "$job" || rc=$?
    if ((rc == 0)); then say "$text: done in $((SECONDS - start)) s"; fi
    return "$rc"
}

log_tail() { tail -n "${2:-8}" "$1" 2>/dev/null | sed 's/^/    /' >&2 || true; }

# ---- root and apt ------------------------------------------------------------------------------------

may_be_root() { [ "$(id -u)" = 0 ] || command -v sudo >/dev/null; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -- "$@"; fi
}

need_root() {
    may_be_root || fail "$1, which needs root, and there is no sudo: run it as root once"
    # ask for the password here, while the terminal is still ours
    [ "$(id -u)" = 0 ] || sudo -v || fail "$1, which needs root, and sudo refused"
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
        -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 "$@"
}

apt_fetch() {
    apt_get install --yes --no-install-recommends "$@" || {
        apt_get update && apt_get install --yes --no-install-recommends "$@"
    }
}

# apt_install WHY PACKAGE...
apt_install() {
    local why=$1
    shift
    command -v apt-get >/dev/null || fail "missing: $* ($why); no apt-get here, install the like by hand"
    need_root "missing: $* ($why)"
    step "installing $* ($why)" apt_fetch "$@" || {
        log_tail "$LOG"
        fail "apt could not fetch or install $* ($why): check the network and apt's sources (log: $LOG)"
    }
}

# missed_lately FILE WHAT: whether FILE says that WHAT could not be had, and is less than a day old
missed_lately() {
    [ "$(cat "$1" 2>/dev/null)" = "$2" ] && [ -n "$(find "$1" -mmin "-$MISS_MINUTES")" ]
}

# ---- stage venv --------------------------------------------------------------------------------------

find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    fail "Python 3.11 or later is missing: install it (Debian 12, Ubuntu 24.04 and later have it as python3)"
}

# The place is part of it: a venv that was copied or moved has the old place in all its scripts.
venv_stamp() { { echo "$TREE"; cat pyproject.toml; } | sha256sum | cut -d ' ' -f 1; }

venv_works() { .venv/bin/python -c 'import pip' 2>/dev/null; }

make_venv() { rm -rf .venv && "$1" -m venv .venv; }

fill_venv() {
    # --group is known to pip from 25.1 on
    .venv/bin/python -m pip install --disable-pip-version-check --retries 2 --quiet --upgrade 'pip>=25.1' \
        && .venv/bin/python -m pip install --retries 2 --quiet --editable '.[lab]' --group dev
}

stage_venv() {
    local python
    if [ "$(cat "$STAMP" 2>/dev/null)" = "$(venv_stamp)" ] && venv_works; then return; fi
    python=$(find_python)
    # a stamp that is not ours: made elsewhere, or for other dependencies; the first cannot be repaired
    if ! venv_works || ! head -n 1 .venv/bin/pip | grep -qF "$TREE/.venv/"; then
        "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install "venv for $python" python3-venv
        step "making .venv" make_venv "$python" || {
            log_tail "$LOG"
            fail "$python could not make $TREE/.venv (log: $LOG)"
        }
    fi
    step "installing pbxguard and its tools into .venv" fill_venv || {
        log_tail "$LOG"
        fail "pip could not fetch or install the packages of pyproject.toml: check the network and pip's index (log: $LOG)"
    }
    venv_stamp >"$STAMP"
}

# ---- stage engine ------------------------------------------------------------------------------------

# The lab makes bridges and reads captures on this machine, so an engine elsewhere is of no use to it.
use_local_socket() {
    local asked=${DOCKER_HOST:-}
    if [ -z "$asked" ] && command -v docker >/dev/null; then
        asked=$(docker context inspect --format '{{.Endpoints.docker.Host}}' 2>/dev/null || true)
    fi
    case $asked in
        unix://*) export DOCKER_HOST=$asked ;;
        *)
            export DOCKER_HOST=$SYSTEM_SOCKET
            if [ -n "$asked" ]; then endpoint_note="the Docker endpoint $asked is not local; using $DOCKER_HOST"; fi
            ;;
    esac
    unset DOCKER_CONTEXT
}

engine_answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

engine_answers_root() { as_root env DOCKER_HOST="$DOCKER_HOST" docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

install_engine() {
    local missing=()
    command -v dockerd >/dev/null || [ -x /usr/sbin/dockerd ] || missing+=(docker.io)
    command -v iptables >/dev/null || [ -x /usr/sbin/iptables ] || missing+=(iptables)
    # the engine loads a profile into a kernel that has AppArmor on, and no container starts without the loader
    if grep -qs Y /sys/module/apparmor/parameters/enabled && [ ! -x /usr/sbin/apparmor_parser ]; then
        missing+=(apparmor)
    fi
    if ((${#missing[@]})); then apt_install "Docker engine" "${missing[@]}"; fi
    # newer Debian has the client in a package of its own
    if ! command -v docker >/dev/null; then apt_install "Docker client" docker-cli; fi
}

# Prints the process id of the new dockerd.
launch_dockerd() {
    # its own session, and none of our descriptors: it outlives make, the lock and the terminal
    # shellcheck disable=SC2016  # expands in the inner shell
    as_root sh -c 'exec 9>&-; PATH=$PATH:/usr/sbin:/sbin; setsid dockerd >"$1" 2>&1 </dev/null & echo $!' \
        sh "$ENGINE_LOG"
}

# Runs, and is no zombie. Not by its command line, which is empty while it becomes another program.
alive() {
    local state
    state=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) && [[ $state == [!ZX]* ]]
}

# wait_for_engine PID: until it answers, is no more, or has had its time
wait_for_engine() {
    local end=$((SECONDS + ENGINE_LIMIT))
    until engine_answers_root; do
        if ! alive "$1" || ((SECONDS >= end)); then return 1; fi
        sleep 0.3
    done
}

start_engine() {
    local pid
    if [ -d /run/systemd/system ]; then
        as_root systemctl start docker && wait_for_engine 1
        return
    fi
    # the package's init script may have started one already
    pid=$(as_root cat /var/run/docker.pid 2>/dev/null) || pid=none
    alive "$pid" || pid=$(launch_dockerd)
    wait_for_engine "$pid"
}

engine_remedy() {
    case $1 in
        *"not supported by the kernel"* | *"iptables failed"* | *"iptables not found"* | *nf_tables*)
            echo "the engine cannot use iptables: try 'update-alternatives --set iptables /usr/sbin/iptables-legacy', then again" ;;
        *cgroup*)
            echo "the engine finds no cgroups: install cgroupfs-mount, or give this machine's /sys/fs/cgroup" ;;
        *"ermission denied"* | *"not permitted"*)
            echo "the engine lacks privileges: inside a container this needs one started with --privileged" ;;
        *"no space left"*)
            echo "the disk is full: free some space under /var/lib/docker" ;;
        *) echo "the engine does not start: see the lines above" ;;
    esac
}

engine_failed() {
    local lines
    if [ -d /run/systemd/system ]; then
        lines=$(as_root journalctl --no-pager --unit docker --lines 15 2>&1 || true)
    else
        lines=$(as_root grep -v level=info "$ENGINE_LOG" 2>&1 | tail -n 8 || true)
    fi
    printf '%s\n' "$lines" | cut -c 1-300 | sed 's/^/    /' >&2
    fail "no Docker engine: $(engine_remedy "$lines")"
}

# A user with sudo gets the group that the socket belongs to; `run` then needs no new login.
join_group() {
    if engine_answers || id -nG "$(id -un)" | tr ' ' '\n' | grep -qx docker; then return; fi
    need_root "no access to $DOCKER_HOST"
    say "adding $(id -un) to the group docker (it owns $DOCKER_HOST)"
    as_root usermod --append --groups docker "$(id -un)"
}

stage_engine() {
    if [ -n "$endpoint_note" ]; then say "$endpoint_note"; fi
    if engine_answers; then return; fi
    if [ "$DOCKER_HOST" != "$SYSTEM_SOCKET" ]; then
        fail "no Docker engine answers at $DOCKER_HOST: start it, or unset DOCKER_HOST"
    fi
    need_root "no Docker engine answers at $DOCKER_HOST; set-up installs docker.io and starts it"
    install_engine
    if ! engine_answers_root; then
        step "starting the Docker engine" start_engine || engine_failed
        # one that an init system looks after is not ours to stop
        if [ ! -d /run/systemd/system ]; then as_root cat /var/run/docker.pid >"$ENGINE_PID"; fi
    fi
    if [ "$(id -u)" != 0 ]; then join_group; fi
}

stage_engine_stop() {
    local pid end=$((SECONDS + 30))
    pid=$(cat "$ENGINE_PID" 2>/dev/null) || return 0
    # a number that now belongs to another program is left alone
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != dockerd ]; then
        rm -f "$ENGINE_PID"
        return
    fi
    say "stopping the Docker engine that set-up started (process $pid)"
    # shellcheck disable=SC2016  # expands in the inner shell, whose own kill needs no package
    as_root sh -c 'kill "$1"' sh "$pid"
    while [ -d "/proc/$pid" ]; do
        if ((SECONDS >= end)); then fail "dockerd (process $pid) did not end within 30 s: see $ENGINE_LOG"; fi
        sleep 0.2
    done
    rm -f "$ENGINE_PID"
}

# ---- stage images ------------------------------------------------------------------------------------

engine_docker() {
    if engine_answers; then docker "$@"; else as_root env DOCKER_HOST="$DOCKER_HOST" docker "$@"; fi
}

image_tag() {
    local hash
    hash=$(cd "docker/$1" && find . -type f | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum | cut -c 1-12)
    echo "$NAMES/$1:$hash"
}

image_id() { engine_docker image inspect --format '{{.Id}}' "$1" 2>/dev/null; }

# limited SECONDS WORD...: `docker WORD...`, 0 without a limit; the engine gives up what its client left
limited() {
    local limit=$1
    shift
    if [ "$limit" = 0 ]; then
        engine_docker "$@"
    elif engine_answers; then
        timeout --kill-after 5 "$limit" docker "$@"
    else
        as_root env DOCKER_HOST="$DOCKER_HOST" timeout --kill-after 5 "$limit" docker "$@"
    fi
}

get_base() {
    local missing=()
    if image_id "$BASE" >/dev/null; then return; fi
    if step "fetching the base image $BASE (at most $PULL_LIMIT s)" limited "$PULL_LIMIT" pull "$BASE"; then return; fi
    no_registry=yes
    say "no image registry can be reached; making $BASE with debootstrap"
    command -v debootstrap >/dev/null || [ -x /usr/sbin/debootstrap ] || missing+=(debootstrap)
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
    if ((${#missing[@]})); then apt_install "base image" "${missing[@]}"; fi
    need_root "debootstrap makes $BASE"
    step "making the base image $BASE" \
        as_root env DOCKER_HOST="$DOCKER_HOST" PATH="$PATH:/usr/sbin:/sbin" docker/base/build.sh "$BASE" "$SUITE" || {
        log_tail "$LOG"
        fail "the base image could neither be pulled nor made from a Debian mirror: check the network (log: $LOG)"
    }
}

# The proxy that this machine's apt uses, for the apt in the build. Docker knows these arguments by name
# and keeps them out of the image and its history.
proxy_arguments() {
    local name value
    for name in http https; do
        value=$(apt-config dump --format '%v%n' "Acquire::$name::Proxy" 2>/dev/null | head -n 1 || true)
        if [ -z "$value" ]; then value=$(printenv "${name}_proxy" || true); fi
        case $value in
            http*) printf -- '--build-arg\n%s_proxy=%s\n' "$name" "$value" ;;
        esac
    done
}

# build_image LIMIT IMAGE TAG [WORD...]
build_image() {
    local proxy limit=$1 name=$2 tag=$3
    shift 3
    mapfile -t proxy < <(proxy_arguments)
    # the host's network: a bridge may have no way to a mirror or proxy that this machine reaches
    limited "$limit" build --network host --force-rm --label pbxguard=image "${proxy[@]}" "$@" \
        --tag "$tag" --tag "$NAMES/$name:latest" "docker/$name"
}

stage_images() {
    local name tag id
    for name in "${IMAGES[@]}"; do
        tag=$(image_tag "$name")
        if ! id=$(image_id "$tag"); then
            get_base
            step "building the image $tag" build_image 0 "$name" "$tag" --build-arg "BASE=$BASE" || {
                log_tail "$LOG" 15
                fail "the image $tag could not be built: check that the network reaches a Debian mirror (log: $LOG)"
            }
        elif [ "$id" != "$(image_id "$NAMES/$name:latest")" ]; then
            engine_docker tag "$tag" "$NAMES/$name:latest"
        fi
    done
}

stage_images_remove() {
    local name
    rm -f "$FREESWITCH_MISS"
    if ! command -v docker >/dev/null || ! engine_answers; then return; fi
    for name in "${IMAGES[@]}" freeswitch; do
        # all tags of it, older ones too; the base image may serve others and stays
        docker image ls --format '{{.Repository}}:{{.Tag}}' --filter label=pbxguard=image "$NAMES/$name" \
            | xargs --no-run-if-empty docker image rm >/dev/null
    done
}

# ---- stage freeswitch --------------------------------------------------------------------------------

image_is_ours() {
    [ "$(engine_docker image inspect --format '{{index .Config.Labels "pbxguard"}}' "$1" 2>/dev/null)" = image ]
}

# have_freeswitch TAG: whether there is one to take. Somebody's own serves as it is, whatever it was made from;
# one of ours has to be of today's recipe.
have_freeswitch() {
    local ours
    if image_id "$FREESWITCH" >/dev/null && ! image_is_ours "$FREESWITCH"; then return; fi
    ours=$(image_id "$1") || return 1
    [ "$ours" = "$(image_id "$FREESWITCH")" ] || engine_docker tag "$1" "$FREESWITCH"
}

try_freeswitch() {
    # the base image comes from the registry that did not answer a moment ago
    if [ -z "$no_registry" ] && step "building the image $1 (at most $FREESWITCH_LIMIT s)" \
        build_image "$FREESWITCH_LIMIT" freeswitch "$1"; then
        rm -f "$FREESWITCH_MISS"
        return
    fi
    echo "$1" >"$FREESWITCH_MISS"
    return 1
}

readonly FREESWITCH_REMEDY="have a registry and an Alpine mirror in reach and run 'make freeswitch', \
or tag an image of FreeSWITCH 1.10.12 or later as $FREESWITCH"

stage_freeswitch() {
    local tag why="could not be built here (log: $LOG)"
    tag=$(image_tag freeswitch)
    if have_freeswitch "$tag"; then return; fi
    if missed_lately "$FREESWITCH_MISS" "$tag"; then
        why="could not be built here less than a day ago"
    elif try_freeswitch "$tag"; then
        return
    fi
    if image_id "$FREESWITCH" >/dev/null; then
        say "the FreeSWITCH image is of an older recipe, and a new one $why; going on with the older"
    else
        say "the FreeSWITCH image $why: FreeSWITCH scenarios are skipped; $FREESWITCH_REMEDY"
    fi
}

stage_freeswitch_now() {
    local tag
    tag=$(image_tag freeswitch)
    if have_freeswitch "$tag"; then
        say "the FreeSWITCH image is there: $FREESWITCH ($(image_id "$FREESWITCH" | cut -c 8-19))"
        return
    fi
    try_freeswitch "$tag" || {
        log_tail "$LOG" 5
        fail "the FreeSWITCH image could not be built (log: $LOG): $FREESWITCH_REMEDY"
    }
}

# ---- stage test-tools --------------------------------------------------------------------------------

have_browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null

# One after the other, so that one that cannot be had does not cost the others. Nothing that is there is removed
# for it: a Node.js of somebody's own may not go together with the distribution's npm.
stage_test_tools() {
    local missing=() missed=() package why="could not be installed here (log: $LOG)"
    have_browser || missing+=(chromium)
    command -v node >/dev/null || missing+=(nodejs)
    command -v npm >/dev/null || missing+=(npm)
    if ((${#missing[@]} == 0)); then return; fi
    missed=("${missing[@]}")
    if missed_lately "$TOOLS_MISS" "${missing[*]}"; then
        why="could not be installed here less than a day ago"
    elif ! command -v apt-get >/dev/null; then
        why="cannot be installed without apt-get"
    elif ! may_be_root || { [ "$(id -u)" != 0 ] && ! sudo -v 2>/dev/null; }; then
        why="need root or sudo to be installed"
    else
        missed=()
        for package in "${missing[@]}"; do
            step "installing $package (for single tests)" apt_fetch --no-remove "$package" || missed+=("$package")
        done
        rm -f "$TOOLS_MISS"
        if ((${#missed[@]} == 0)); then return; fi
        echo "${missed[*]}" >"$TOOLS_MISS"
    fi
    say "missing: ${missed[*]}, which $why: the tests that need them are skipped; install the like by hand"
}

# ---- stages ------------------------------------------------------------------------------------------

# One set-up at a time in a tree: two `make` started together would build into each other.
lock() {
    mkdir -p .state
    exec 9>.state/setup.lock
    flock 9
}

run_command() {
    # without this, a missing `docker` is reported as the folder of that name
    command -v "$1" >/dev/null || fail "no command $1 here: run make once, which sets it up"
    local me
    me=$(id -un)
    # in the group since a moment ago (join_group), but this login does not know: sudo reads groups afresh
    if [ "$(id -u)" != 0 ] && ! engine_answers && may_be_root \
        && getent group docker | cut -d : -f 4 | tr , '\n' | grep -qx "$me"; then
        exec sudo --preserve-env --user "$me" -- env "PATH=$PATH" "$@"
    fi
    exec "$@"
}

usage() {
    say "usage: docker/prepare.sh [venv|engine|images|freeswitch|freeswitch-now|test-tools|engine-stop|images-remove]... | tag IMAGE | run COMMAND... (not: $*)"
    exit 2
}

main() {
    local stage
    endpoint_note=
    no_registry=
    case ${1:-} in
        tag)
            if [ $# != 2 ] || [ ! -f "docker/${2:-}/Dockerfile" ]; then usage "$@"; fi
            image_tag "$2"
            return
            ;;
        run)
            if [ $# -lt 2 ]; then usage "$@"; fi
            shift
            use_local_socket
            run_command "$@"
            ;;
        '') usage nothing ;;
    esac
    for stage in "$@"; do
        case $stage in
            venv | engine | images | freeswitch | freeswitch-now | test-tools | engine-stop | images-remove) ;;
            *) usage "$stage" ;;
        esac
    done
    lock
    use_local_socket
    for stage in "$@"; do
        "stage_${stage//-/_}"
    done
}

main "$@"
