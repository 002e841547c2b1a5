# shellcheck shell=sh
# What a machine is and has. Reads only; plain POSIX sh, busybox's too; needs no rights.
#   probe [ADDRESS OF THE HUB] [PORT OF THE SERVICE]
# Each section: "@@ NAME", what the commands wrote, "@@= STATUS". facts.py reads it. Sections whose
# programs have been seen to hang come last, so that the others are there when time runs out.
LC_ALL=C
LANGUAGE=C
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/wsl/lib
export LC_ALL LANGUAGE PATH

have() { command -v "$1" >/dev/null 2>&1; }

limit=own
if timeout -k 1 1 true >/dev/null 2>&1; then
    limit="kill"
elif timeout 1 true >/dev/null 2>&1; then
    limit=plain
fi

# bounded SECONDS PROGRAM...: its output and errors; status 124 or 137 when it took longer.
bounded() {
    seconds=$1
    shift
    case $limit in
    kill) timeout -k 2 "$seconds" "$@" 2>&1 ;;
    plain) timeout "$seconds" "$@" 2>&1 ;;
    *)
        "$@" 2>&1 &
        child=$!
        (sleep "$seconds" && kill -9 "$child") >/dev/null 2>&1 &
        guard=$!
        wait "$child" 2>/dev/null
        status=$?
        kill "$guard" 2>/dev/null
        return "$status"
        ;;
    esac
}

section() { echo "@@ $1"; }
over() {
    status=$?
    echo
    echo "@@= $status"
}
# show FILE...: the first that can be read.
show() {
    for file in "$@"; do
        if [ -r "$file" ]; then
            cat "$file"
            return
        fi
    done
    return 1
}
# line FILE: its first line, or an empty one.
line() {
    text=
    { read -r text <"$1"; } 2>/dev/null
    echo "$text"
}
# ran SECONDS NAME PROGRAM...: a section, or nothing where the program is missing.
ran() {
    if have "$3"; then
        section "$2"
        seconds=$1
        shift 2
        bounded "$seconds" "$@"
        over
    fi
}

# sleeps NAME: systemd would start the service if its socket were used.
sleeps() {
    have systemctl && [ -d /run/systemd/system ] || return 1
    [ "$(bounded 5 systemctl is-active "$1.service")" != active ] &&
        [ "$(bounded 5 systemctl is-active "$1.socket")" = active ]
}

probe() {
    echo "@@maestrale 1"
    section clock
    date +%s
    over
    section os
    show /etc/os-release /usr/lib/os-release
    over
    section kernel
    uname -s && uname -r && uname -m
    over
    section user
    id -u && id -un && id -Gn
    over
    section home
    echo "${HOME-}"
    over

    section pci
    for device in /sys/bus/pci/devices/*; do
        class=$(line "$device/class")
        case $class in
        0x03* | 0x12* | 0x0680*)
            driver=$( (cd -P "$device/driver" 2>/dev/null && echo "${PWD##*/}"))
            echo "${device##*/} $(line "$device/vendor") $(line "$device/device") $class ${driver:--}"
            ;;
        esac
    done
    over
    section drm
    ls /dev/dri /dev/nvidia0 /dev/nvidiactl /dev/nvidia-uvm /dev/dxg /dev/kfd 2>/dev/null
    over
    section nvidia-module
    show /proc/driver/nvidia/version
    over
    section nvidia-programs
    command -v nvidia-smi
    over
    section modules
    grep -E '^(nvidia|nouveau|nova_core|amdgpu)[_a-z]* ' /proc/modules 2>/dev/null
    over
    section secure-boot
    if [ -d /sys/firmware/efi ]; then
        echo efi
        for variable in /sys/firmware/efi/efivars/SecureBoot-*; do
            [ -r "$variable" ] && od -An -t u1 "$variable"
        done
    fi
    over

    section memory
    grep -E '^(MemTotal|MemAvailable|SwapTotal):' /proc/meminfo
    over
    section memory-limit
    show /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes
    over
    section cpu
    grep -c '^processor' /proc/cpuinfo
    nproc 2>/dev/null || echo 0
    grep -m 1 -E '^(model name|Model)' /proc/cpuinfo || echo
    grep -m 1 -E '^(flags|Features)' /proc/cpuinfo || echo
    over
    section ports
    grep -h ' 0A ' /proc/net/tcp /proc/net/tcp6 2>/dev/null
    [ -r /proc/net/tcp ] # unknown is not free
    over
    if [ -n "${2-}" ]; then ran 5 sockets ss -Hltnp "sport = :$2"; fi

    section boot
    cat /proc/1/comm
    [ -d /run/systemd/system ] && echo systemd
    [ -e /.dockerenv ] || [ -e /run/.containerenv ] && echo container
    [ -e /run/reboot-required ] && echo reboot-required
    [ -e "/lib/modules/$(uname -r)" ] || echo modules-gone
    [ -e "/lib/modules/$(uname -r)/build" ] && echo headers
    true
    over
    section maker
    for file in sys_vendor product_name chassis_asset_tag bios_vendor; do
        line "/sys/class/dmi/id/$file"
    done
    over
    section cloud-init
    line /run/cloud-init/cloud-id
    [ -e /run/cloud-init/status.json ] && [ ! -e /run/cloud-init/result.json ] && echo running
    true
    over
    section locks
    ls -i /var/lib/dpkg/lock-frontend /var/lib/dpkg/lock /var/lib/apt/lists/lock \
        /var/cache/apt/archives/lock 2>/dev/null
    cat /proc/locks 2>/dev/null
    over
    section updates
    ls /var/lib/dpkg/updates 2>/dev/null
    over
    section daemon-json
    show /etc/docker/daemon.json
    over
    section cdi
    ls /etc/cdi /var/run/cdi 2>/dev/null
    over
    section docker-socket
    [ -S /var/run/docker.sock ] && echo socket
    [ -w /var/run/docker.sock ] && echo writable
    [ -n "${DOCKER_HOST-}" ] && echo "host $DOCKER_HOST"
    true
    over
    section token
    if [ -n "${HF_TOKEN-}${HUGGING_FACE_HUB_TOKEN-}" ]; then
        echo environment
    else
        for file in "${HF_TOKEN_PATH-}" "${HF_HOME:-${HOME-}/.cache/huggingface}/token"; do
            [ -r "$file" ] && echo "$file"
        done
    fi
    true
    over

    ran 5 python python3 --version
    section compiler
    command -v c++ || command -v g++ || command -v clang++
    over
    # shellcheck disable=SC2016 # dpkg's own format
    ran 10 packages dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\n' \
        'nvidia-*' 'libnvidia-*' 'linux-modules-nvidia-*' 'cuda-drivers*' 'docker*' 'containerd*' \
        'podman*'
    ran 10 rpms rpm -qa 'nvidia*' 'kmod-nvidia*' 'akmod-nvidia*' 'docker*' 'moby*' 'podman*'
    ran 5 modinfo modinfo -F version nvidia
    ran 5 virtualisation systemd-detect-virt
    ran 5 ntp timedatectl show -p NTP -p NTPSynchronized
    ran 5 chrony chronyc -n tracking
    ran 5 services systemctl is-active docker containerd maestrale nvidia-fabricmanager
    if [ "$(id -u)" != 0 ]; then ran 5 sudo sudo -n -l; fi
    ran 10 toolkit nvidia-ctk --version
    ran 5 docker docker --version
    images=/var/lib/docker
    if have docker; then
        section docker-info
        if sleeps docker; then
            echo "Its socket waits; asking would start it."
            false
        else
            info=$(bounded 10 docker info --format '{{json .}}')
            status=$?
            root=$(printf '%s' "$info" | sed -n 's/.*"DockerRootDir":"\(\/[^"]*\)".*/\1/p')
            images=${root:-$images}
            printf '%s\n' "$info"
            (exit "$status")
        fi
        over
    fi

    if [ -n "${1-}" ]; then
        section hub
        echo "asked at $(date +%s)"
        if have curl; then
            bounded 8 curl -sSI --max-time 6 "$1"
        elif have wget; then
            bounded 8 wget -S --spider -T 6 -t 1 "$1"
        else
            echo no-tool
        fi
        over
    fi
    if [ -n "${2-}" ] && have curl; then
        section service
        bounded 5 curl -s --noproxy '*' --max-time 3 "http://127.0.0.1:$2/health"
        over
    fi
    section disks
    for folder in / "$images" /var/lib/containerd /var/lib/maestrale "${HOME:-/}" /tmp /boot; do
        echo "for $folder"
        while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
        bounded 5 df -Pk "$folder"
    done
    over
    # Without the module nvidia-smi would try to load it.
    if have nvidia-smi && { [ -e /proc/driver/nvidia/version ] || [ -e /dev/dxg ]; }; then
        section nvidia-smi
        bounded 20 nvidia-smi
        over
        if [ "$status" = 0 ]; then
            ran 20 gpus nvidia-smi --format=csv,noheader,nounits \
                --query-gpu=pci.bus_id,name,driver_version,memory.total,memory.used,compute_cap
        fi
    fi
    echo "@@end"
}
