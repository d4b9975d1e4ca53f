# The same leaks twice: seen live while they are made, and found by kmemleak afterwards.
leakscope kernel trace --for 0 --min-age 1s --sample 0 --once --format json -o /tmp/trace.leak > /tmp/trace.json 2> /tmp/trace.err &
tracer=$!
until grep -q "Ctrl-C ends it" /tmp/trace.err || ! kill -0 $tracer; do sleep 0.2; done
insmod /mod/leaky.ko
sleep 3
kill -INT $tracer
wait $tracer
section said cat /tmp/trace.err
section trace cat /tmp/trace.json
section scan leakscope kernel scan --mount --rescan 1 --min-age 10s -q --format json -o /tmp/scan.leak

# One identity: what the tracer's baseline sets aside is not new in the scan.
section baseline leakscope baseline update --baseline /tmp/baseline.toml /tmp/trace.leak
section gate leakscope gate --new-only --baseline /tmp/baseline.toml /tmp/scan.leak
section diff leakscope kernel diff --format json /tmp/trace.leak /tmp/scan.leak
