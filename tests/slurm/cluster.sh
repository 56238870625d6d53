#!/usr/bin/env bash
# A real SLURM cluster on one machine, for tests: slurmctld, a slurmd per virtual node and munged, on the loopback only,
# without systemd and without root, everything they write below DIR.
#
#   cluster.sh install       the Debian packages, where they are missing (needs root)
#   cluster.sh start DIR     start it and wait until its nodes are idle; again after a daemon was killed
#   cluster.sh stop DIR      cancel its jobs, end exactly its daemons
#   eval "$(cluster.sh env DIR)"    then sinfo, sbatch, snakemake use it
#
# Partition gpu has nodes gn1 and gn2 with two GPUs each, links to /dev/null; partition cpu, the default, has cn1.
# Its daemons take loopback ports from PORT (17800) on. Written for SLURM 22.05 of Debian 12.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

NODES="gn1 gn2 cn1"
PORT=${PORT:-17800}

die() {
    echo "cluster.sh: $*" >&2
    exit 1
}

install_packages() {
    command -v slurmctld slurmd sbatch munged > /dev/null && return
    [[ $(id -u) == 0 ]] || die "SLURM is not installed: apt-get install slurmctld slurmd slurm-client munge"
    local policy=/usr/sbin/policy-rc.d # without it apt starts services of the whole system
    local made=""
    [[ -e $policy ]] || made=$policy
    [[ -z $made ]] || { printf '#!/bin/sh\nexit 101\n' > $policy && chmod +x $policy; }
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends \
        slurmctld slurmd slurm-client munge > /dev/null
    [[ -z $made ]] || rm $policy
}

configure() {
    local host user port node
    host=$(hostname -s) user=$(id -un) port=$((PORT + 10))
    mkdir -p "$DIR"/{etc,bin,log,run,state,dev,munge}
    chmod 755 "$DIR/munge"
    (umask 077 && head -c 128 /dev/urandom > "$DIR/munge/munge.key")
    # The plugin that touches no cgroup before it is asked for one, so it starts in containers, too.
    echo "CgroupPlugin=cgroup/v1" > "$DIR/etc/cgroup.conf"
    # A GPU is a character device whose name ends in a digit, which becomes CUDA_VISIBLE_DEVICES.
    ln -sfn /dev/null "$DIR/dev/fakegpu0"
    ln -sfn /dev/null "$DIR/dev/fakegpu1"
    echo "NodeName=gn[1-2] Name=gpu Type=fake File=$DIR/dev/fakegpu[0-1]" > "$DIR/etc/gres.conf"
    cat > "$DIR/etc/slurm.conf" << END
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/munge.socket,cred_expire=10
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool.%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory,CR_LLN
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SlurmdTimeout=10
ReturnToService=2
KillWait=5
MinJobAge=3600
GresTypes=gpu
SlurmdParameters=config_overrides
PartitionName=gpu Nodes=gn[1-2] MaxTime=60 DefaultTime=10
PartitionName=cpu Nodes=cn1 Default=YES MaxTime=60 DefaultTime=10
END
    for node in $NODES; do
        echo "NodeName=$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port++)) CPUs=4 RealMemory=16000" \
            "$([[ $node == gn* ]] && echo Gres=gpu:fake:2)" >> "$DIR/etc/slurm.conf"
    done
    # Snakemake's executor takes every SLURM_* out of the environment before a job's inner srun, SLURM_CONF, too.
    printf '#!/bin/sh\nexport SLURM_CONF="%s"\nexec %s "$@"\n' "$SLURM_CONF" "$(command -v srun)" > "$DIR/bin/srun"
    chmod +x "$DIR/bin/srun"
}

alive() { # alive PIDFILE PROGRAM: print the process, if it lives and is ours
    local pid
    pid=$(cat "$1" 2> /dev/null) || return 1
    [[ $(cat "/proc/$pid/comm" 2> /dev/null) == "$2"* ]] && echo "$pid"
}

ready() { [[ $(sinfo -hN -o "%N %t" | grep -cE ' (idle|mix|alloc|comp)$') == $(wc -w <<< "$NODES") ]]; }

start() {
    install_packages
    [[ -e $SLURM_CONF ]] || configure
    alive "$DIR/munge/munged.pid" munged > /dev/null ||
        munged --force --key-file="$DIR/munge/munge.key" --socket="$DIR/munge/munge.socket" \
            --pid-file="$DIR/munge/munged.pid" --log-file="$DIR/munge/munged.log" \
            --seed-file="$DIR/munge/munged.seed" 2> /dev/null || die "munged: $(tail -n 2 "$DIR/munge/munged.log")"
    alive "$DIR/run/slurmctld.pid" slurmctld > /dev/null || slurmctld 2> "$DIR/log/slurmctld.err"
    local node end=$((SECONDS + 60))
    for node in $NODES; do
        alive "$DIR/run/slurmd.$node.pid" slurmd > /dev/null && continue
        mkdir -p "$DIR/spool.$node"
        slurmd -N "$node" 2> "$DIR/log/slurmd.$node.err" || die "slurmd of $node: see $DIR/log"
    done
    until ready 2> /dev/null; do
        ((SECONDS < end)) || die "no idle nodes after 60 s: see $DIR/log"
        sleep 0.2
    done
}

end() { # end PIDFILE PROGRAM
    local pid
    pid=$(alive "$1" "$2") || return 0
    kill "$pid"
    timeout 20 tail --pid="$pid" -f /dev/null || kill -9 "$pid"
    rm -f "$1"
}

stop() {
    alive "$DIR/run/slurmctld.pid" slurmctld > /dev/null && scancel --quiet --user="$(id -un)" || true
    local node
    for node in $NODES; do end "$DIR/run/slurmd.$node.pid" slurmd & done
    wait
    end "$DIR/run/slurmctld.pid" slurmctld
    end "$DIR/munge/munged.pid" munged
}

case "${1:-} $#" in
"install 1") install_packages && exit ;;
"start 2" | "stop 2" | "env 2") ;;
*) sed -n '2,/^set -e/{/^#/s/^# \{0,1\}//p}' "$0" && exit 2 ;;
esac
mkdir -p "$2"
DIR=$(cd "$2" && pwd -P)
((${#DIR} <= 70)) || die "$DIR: a path of more than 70 characters is too long for the daemons' sockets"
[[ $DIR != *[[:space:]]* ]] || die "$DIR: no blanks in the path"
export SLURM_CONF=$DIR/etc/slurm.conf
case $1 in
start) start ;;
stop) stop ;;
env) printf 'export SLURM_CONF=%q PATH=%q:$PATH\n' "$SLURM_CONF" "$DIR/bin" ;;
esac
