# shellcheck shell=sh
# Sourced by ./maestrale and the scripts: makes a private Python environment from a lock file.
# POSIX sh. The caller has set `root`, the checkout. PIP_* and UV_* settings are respected.

say() { printf 'maestrale: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# Sets `home`, also where HOME is unset or empty.
find_home() {
    home=${HOME:-}
    [ -n "$home" ] || home=$(getent passwd "$(id -u)" 2>/dev/null | cut -d: -f6) || home=
}

# place_environment NAME: sets `env` to where the environment goes. In the checkout; where that
# can't be written, in the user's data folder, one for each checkout.
place_environment() {
    env=${root:?}/$1
    if [ -w "$root" ] || is_current; then return; fi
    find_home
    case ${XDG_DATA_HOME:-} in
        /*) data=$XDG_DATA_HOME ;;
        *) data=$home/.local/share ;;
    esac
    env=$data/maestrale/$(printf %s "$root" | cksum | cut -d' ' -f1)$1
    mkdir -p "$data/maestrale" 2>/dev/null ||
        die "neither $root nor $data can be written: set XDG_DATA_HOME to a folder that can."
}

# What a complete environment bears in its file `stamp`, written last: the lock's checksum and
# the interpreter. An interrupted installation, a new lock or another Python don't match it.
stamp() { printf '%s %s\n' "$(cksum <"$lock")" "$(readlink -f "$env/bin/python")"; }

is_current() {
    [ -x "$env/bin/python" ] && [ -f "$env/stamp" ] && [ "$(cat "$env/stamp")" = "$(stamp)" ]
}

# use_environment NAME LOCK: sets `env` to a complete environment, making it where needed.
use_environment() {
    lock=$root/$2
    place_environment "$1"
    is_current && return
    # One start installs, others wait. The kernel lets go of the lock however the holder ends.
    if command -v flock >/dev/null 2>&1; then
        exec 9>"$env.lock"
        flock -n 9 || { say "waiting for another start that is installing ..." && flock 9; }
    fi
    is_current || install_environment
    exec 9>&-
    rm -f "$env.lock"
}

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

# Sets `python` to a supported Python, or to nothing.
find_python() {
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        command -v "$python" >/dev/null 2>&1 && is_supported "$python" && return
    done
    python=
}

has_module() { "$1" -c "import $2" >/dev/null 2>&1; }

# On Debian and Ubuntu, as root, what is missing can be installed.
can_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; }

# may_apt PACKAGES...: whether they may be installed on this system: MAESTRALE_APT=yes says so, or
# whoever sits at the terminal.
may_apt() {
    can_apt || return 1
    case ${MAESTRALE_APT:-} in
        yes) return 0 ;;
        ?*) return 1 ;;
    esac
    [ -t 0 ] && [ -t 2 ] || return 1
    printf 'maestrale: install the system packages %s with apt-get? [y/N] ' "$*" >&2
    read -r answer || return 1
    case $answer in [yY]*) return 0 ;; esac
    return 1
}

# What to say of it where it was not allowed.
apt_hint() {
    if can_apt; then
        printf '\nOr let this do it:\n    MAESTRALE_APT=yes ./maestrale ...'
    fi
}

apt_install() {
    say "installing system packages: $*"
    {
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" ||
            { apt-get update && DEBIAN_FRONTEND=noninteractive \
                apt-get install -y --no-install-recommends "$@"; }
    } >"$log" 2>&1 </dev/null
}

# What helps but need not be there: where it can't be installed, the caller goes on without it.
try_apt_install() {
    can_apt || return 0
    log=$env.log
    apt_install "$@" || say "that did not work: see $log"
}

absent() { ! command -v "$1" >/dev/null 2>&1; }

# fetch_uv PYTHON: gets a uv of our own, the one that the lock for development pins, by its hashes;
# PYTHON needs no more than its standard library. Sets `uv`, and for it what pip would heed.
fetch_uv() {
    say "getting uv, which makes the environment (once; 25 MB) ..."
    rm -rf "$env.uv"
    mkdir -p "$env.uv"
    if ! "$1" -I "$root/scripts/get_uv.py" "$root/locks/dev.lock" "$env.uv/uv" \
        >"$env.uv/settings" 2>"$log" </dev/null || ! "$env.uv/uv" --version >>"$log" 2>&1; then
        say "that did not work: $(tail -n 1 "$log")"
        rm -rf "$env.uv"
        return 1
    fi
    uv=$env.uv/uv
    # shellcheck source=/dev/null # written by get_uv.py just now
    . "$env.uv/settings"
}

# keep_uv: a uv of our own goes into the new environment: what is fetched later needs it too.
keep_uv() {
    [ "$uv" = "$env.uv/uv" ] || return 0
    mv "$env.uv/uv" "$env/bin/uv"
    mv "$env.uv/settings" "$env/uv-settings"
    rm -rf "$env.uv"
    uv=$env/bin/uv
}

install_uv_hint="or install uv (it brings its own Python):
    curl -LsSf https://astral.sh/uv/install.sh | sh    or    pipx install uv"

# Sets `uv` to use uv, or `python` and `tool` (venv, or pip from outside) to do without.
choose_tools() {
    uv=$(command -v uv) && "$uv" --version >/dev/null 2>&1 && return
    if [ -x "$env/bin/uv" ] && [ -f "$env/uv-settings" ]; then
        uv=$env/bin/uv
        # shellcheck source=/dev/null # the same, kept
        . "$env/uv-settings"
        return
    fi
    uv=
    find_python
    if [ -z "$python" ] && absent python3 && may_apt python3 python3-venv; then
        apt_install python3 python3-venv || installation_failed
        find_python
    fi
    if [ -n "$python" ]; then
        if has_module "$python" ensurepip; then
            tool=venv
        elif has_module "$python" venv && has_module "$python" pip; then
            tool=pip
        elif fetch_uv "$python"; then
            tool=
        elif [ "$python" = python3 ] && may_apt python3-venv; then
            apt_install python3-venv || installation_failed
            tool=venv
        else
            die "$python can't make virtual environments: its modules venv and ensurepip are missing.
On Debian and Ubuntu:
    sudo apt-get install python3-venv
$install_uv_hint$(apt_hint)
Then run this again."
        fi
        return
    fi
    if ! command -v python3 >/dev/null 2>&1; then
        die "Python 3.11 to 3.14 is needed, and there is no python3. On Debian and Ubuntu:
    sudo apt-get install python3 python3-venv
$install_uv_hint$(apt_hint)
Then run this again."
    fi
    # uv brings a newer Python.
    fetch_uv python3 || die "Python 3.11 to 3.14 is needed; this is $(python3 --version 2>&1). Get one,
$install_uv_hint
Then run this again."
}

installation_failed() {
    printf '\n' >&2
    tail -n 15 "$log" | sed 's/^/    /' >&2
    if grep -qiE 'name resolution|could not resolve|dns error|NewConnectionError|error sending request|network is unreachable|failed to (fetch|connect)|ConnectTimeout' "$log"; then
        die "the installation failed: the package index can't be reached. Is there a network? Behind a
proxy set HTTPS_PROXY; for a mirror set PIP_INDEX_URL (UV_INDEX_URL for uv). Then run this again."
    elif grep -qiE 'no matching distribution|no solution found' "$log"; then
        die "the installation failed: the package index can't be reached, or
has no build of it for this machine ($(uname -sm), $("${python:-python3}" --version 2>&1)).
In that case: Linux with glibc (not Alpine's musl) on x86-64 or ARM64 is needed, and Python 3.11 to 3.14."
    elif grep -qi 'no space left' "$log"; then
        die "the installation failed: the disk is full. About 1 GB is needed. Then run this again."
    fi
    die "the installation failed; the end of $log is above. Run this again to retry."
}

# Reads the installer's output, keeps it in the log, and shows how far it is: on a terminal in a
# line that moves, elsewhere in one every ten seconds.
show_progress() {
    count=0 shown=$(date +%s)
    while IFS= read -r line; do
        printf '%s\n' "$line" >>"$log"
        case $line in
            *Collecting\ *) count=$((count + 1)) doing="fetching ${line#*Collecting }" ;;
            *Downloading\ *) doing="fetching ${line#*Downloading }" ;;
            *Installing\ collected*) doing="unpacking" count=$packages ;;
            *) continue ;;
        esac
        step=
        [ "$count" = 0 ] || step="$count/$packages "
        if [ ! -t 2 ]; then
            now=$(date +%s)
            [ $((now - shown)) -ge 10 ] || continue
            shown=$now
            printf 'maestrale: %s%.60s\n' "$step" "${doing%% --hash*}" >&2
            continue
        fi
        printf '\r\033[Kmaestrale: %s%.60s' "$step" "${doing%% --hash*}" >&2
    done
    [ ! -t 2 ] || printf '\r\033[K' >&2
}

install_environment() {
    # Where the folder can't be written, mktemp says so better than what comes after it.
    log=$env.log
    : 2>/dev/null >"$log" || die "$log can't be written."
    choose_tools
    packages=$(grep -c '^[a-z0-9]' "$lock")
    begin=$(date +%s)
    say "installing $packages packages into $env (once; from the network about a minute) ..."
    if [ "$uv" = "$env/bin/uv" ]; then # of the environment that is replaced
        mkdir -p "$env.uv"
        mv "$uv" "$env.uv/uv"
        mv "$env/uv-settings" "$env.uv/settings"
        uv=$env.uv/uv
    fi
    rm -rf "$env"
    if [ -n "$uv" ]; then
        "$uv" venv --quiet --no-project --python '>=3.11,<3.15' "$env" >>"$log" 2>&1 || installation_failed
        keep_uv
        set -- "$uv" pip install --python "$env/bin/python"
    elif [ "$tool" = venv ]; then
        "$python" -m venv "$env" >>"$log" 2>&1 || installation_failed
        set -- "$env/bin/python" -m pip install --no-compile --no-input --progress-bar off
    else
        "$python" -m venv --without-pip "$env" >>"$log" 2>&1 || installation_failed
        set -- "$python" -m pip --python "$env/bin/python" install --no-compile --no-input --progress-bar off
    fi
    # From the checkout: uv also heeds the settings of the project it is called in.
    # --no-deps: the lock is complete, and holds no more than is needed (see pyproject.toml).
    {
        cd "$root" && PIP_USER=0 "$@" --no-deps --require-hashes --requirement "$lock" \
            </dev/null 2>&1 && echo "installation complete"
    } | show_progress
    [ "$(tail -n 1 "$log")" = "installation complete" ] || installation_failed
    stamp >"$env/stamp"
    say "installed in $(($(date +%s) - begin)) s."
    rm -f "$log"
}

# install_extra LOCK: adds the packages of a lock to the complete environment `env`.
install_extra() {
    log=$env.log
    : 2>/dev/null >"$log" || die "$log can't be written."
    choose_tools
    if [ -n "$uv" ]; then
        set -- "$1" "$uv" pip install --python "$env/bin/python"
    elif [ "$tool" = venv ]; then
        # uv, if it made the environment, put no pip into it.
        has_module "$env/bin/python" pip ||
            "$env/bin/python" -m ensurepip >"$log" 2>&1 || installation_failed
        set -- "$1" "$env/bin/python" -m pip install --no-compile --no-input --progress-bar off
    else
        set -- "$1" "$python" -m pip --python "$env/bin/python" install --no-compile --no-input --progress-bar off
    fi
    extra_lock=$root/$1
    shift
    (cd "$root" && PIP_USER=0 "$@" --no-deps --require-hashes --requirement "$extra_lock") \
        </dev/null >"$log" 2>&1 || installation_failed
    rm -f "$log"
}

# use_extra NAME: has the extra in the complete environment `env`; one without a lock is left to
# scripts/extra.
use_extra() {
    extra=$root/locks/$1.lock
    [ -f "$extra" ] || return 0
    made="$(cksum <"$extra") $(cat "$env/stamp")"
    [ "$(cat "$env/extra-$1" 2>/dev/null)" != "$made" ] || return 0
    if command -v flock >/dev/null 2>&1; then exec 9>"$env.lock" && flock 9; fi
    if [ "$(cat "$env/extra-$1" 2>/dev/null)" != "$made" ]; then
        say "installing the extra '$1' into $env (once) ..."
        install_extra "locks/$1.lock"
        printf '%s\n' "$made" >"$env/extra-$1"
    fi
    exec 9>&-
    rm -f "$env.lock"
}

# install_beside LOCK ARGUMENTS...: adds packages that no lock holds to the complete environment
# `env`. What LOCK pins stays as it is, but for those of which vLLM wants older ones.
install_beside() {
    log=$env.log
    : 2>/dev/null >"$log" || die "$log can't be written."
    choose_tools
    sed -n 's/ *\\$//; /^fastapi==/d; /^llguidance==/d; /^numpy==/d; /^[a-z0-9]/p' "$root/$1" >"$env/constraints.txt"
    shift
    set -- --constraint "$env/constraints.txt" "$@"
    if [ -n "$uv" ]; then
        set -- "$uv" pip install --python "$env/bin/python" "$@"
    elif [ "$tool" = venv ]; then
        set -- "$env/bin/python" -m pip install --no-compile --no-input --progress-bar off "$@"
    else
        set -- "$python" -m pip --python "$env/bin/python" install --no-compile --no-input --progress-bar off "$@"
    fi
    (cd "$root" && PIP_USER=0 "$@") </dev/null >"$log" 2>&1 || installation_failed
    rm -f "$log"
}

# Runs Python in the environment: only the checkout's sources (and what is in the folder `also_from`,
# where that is set) and the lock's packages count.
# Bytecode goes into the environment, whatever the caller's settings: without it each start would
# compile all that it imports, and the checkout stays as it is.
run_python() {
    # Of a uv of our own: what it fetches later comes from where pip would take it.
    [ ! -f "$env/uv-settings" ] || eval "$(sed -n '/ UV_[A-Z_]*=/p' "$env/uv-settings")"
    unset PYTHONHOME PYTHONDONTWRITEBYTECODE
    PYTHONPATH=$root/src${also_from:+:$also_from} PYTHONSAFEPATH=1 PYTHONPYCACHEPREFIX=$env/bytecode \
        exec "$env/bin/python" "$@"
}
