#!/usr/bin/env bash
# .ci/slurm.sh DIR [CPUS]: a Slurm of this one machine for trying and testing, with all its files under DIR. As root on Debian it
# installs slurm-wlm and munge where they are missing. Prints the line to evaluate; to end it: scontrol shutdown
set -euo pipefail
dir=$(mkdir -p "${1:?usage: .ci/slurm.sh DIR [CPUS]}" && cd "$1" && pwd) cpus=${2:-$(nproc)} host=$(hostname -s)
if ! command -v slurmctld sbatch >/dev/null; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge; } >/dev/null
fi
mkdir -p "$dir"/{state,spool} /run/munge
[[ -f /etc/munge/munge.key ]] || (umask 077 && head -c 1024 /dev/urandom >/etc/munge/munge.key)
chown -R munge: /etc/munge /run/munge /var/lib/munge /var/log/munge
munge -n >/dev/null 2>&1 || setpriv --reuid munge --regid munge --clear-groups munged
cat >"$dir/slurm.conf" <<END
ClusterName=twins
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=30
MailProg=/bin/true
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF=$dir/slurm.conf
slurmctld >&2 && slurmd >&2
for _ in {1..60}; do
  if [[ $(sinfo --noheader --format=%T 2>/dev/null) == idle ]]; then echo "export SLURM_CONF=$SLURM_CONF"; exit; fi
  sleep 0.5
done
echo "expected an idle node within 30 seconds, got: $(sinfo 2>&1); see $dir/slurmctld.log" >&2
exit 1
