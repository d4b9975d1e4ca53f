# The monitor's schedule: `once` makes the scan that is due, and says what it has found.
mount -t debugfs none /sys/kernel/debug
insmod /mod/clean.ko
insmod /mod/leaky.ko
printf 'kmemleak = "1h"\npressure = 100\nstate = "/tmp/state"\n' > /tmp/monitor.toml
# Blocks must be some seconds old to be believed.
sleep 8
section once leakscope monitor once --config /tmp/monitor.toml
# Within the hour no scan is due; what was found stays open, and is not said again.
section again leakscope monitor once --config /tmp/monitor.toml
section status leakscope monitor status --config /tmp/monitor.toml
