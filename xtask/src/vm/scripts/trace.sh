section not-root su -s /bin/sh nobody -c "leakscope kernel trace --for 1s --once"

# What is loaded after tracing began is seen from its first block on.
leakscope kernel trace --for 0 --min-age 2s --interval 1s --sample 0 --once --format json -o /tmp/trace.leak > /tmp/trace.json 2> /tmp/trace.err &
tracer=$!
until grep -q "Ctrl-C ends it" /tmp/trace.err || ! kill -0 $tracer; do sleep 0.2; done
insmod /mod/clean.ko
echo 4 > /sys/module/clean/parameters/more
insmod /mod/leaky.ko
sleep 6
kill -INT $tracer
wait $tracer
section trace cat /tmp/trace.json
section said cat /tmp/trace.err
section report leakscope report /tmp/trace.leak

# Only what has the module on its stack; nothing is left of a tracer that is killed.
section module leakscope kernel trace --module leaky --kmalloc --for 4s --min-age 1s --sample 0 --once --json
leakscope kernel trace --for 0 --once > /dev/null 2> /tmp/killed.err &
tracer=$!
until grep -q "Ctrl-C ends it" /tmp/killed.err || ! kill -0 $tracer; do sleep 0.2; done
kill -9 $tracer
wait $tracer
section after-kill leakscope kernel trace --for 2s --min-age 1s --once --json
