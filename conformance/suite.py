"""Runs one test under a detector and holds what it said against the recorded expectation.

A command template runs by sh in the test's folder, because options name suppression files relative to it.
"""
import collections, glob, os, re, shlex, signal, subprocess, tempfile, time

from catalogue import SILENCED, SLOW
from report import HEAD, LEAKREC, SUMLINE, Report, merge, parse_xml

Counter = collections.Counter

class Run:
    """One finished run."""
    def __init__(self, test, stdout, stderr, files, rc, timed_out):
        self.test, self.stdout, self.stderr = test, stdout, stderr
        self.files, self.rc, self.timed_out = files, rc, timed_out    # files: {path: text}


def read_run(run):
    docs = [t for t in run.files.values() if t.strip()] if run.files else [run.stderr]
    parts = []
    for t in docs:
        for d in re.split(r'(?=<\?xml )', t):
            if '<valgrindoutput' in d:
                parts.append(parse_xml(d))
    r = merge(parts)
    if not parts:
        r.broken = 'no XML report'
    r.text = run.stderr if run.files else ''
    return r


def clean_env(t):
    env = {k: v for k, v in os.environ.items()
           if not k.startswith(('MALLOC_', 'VALGRIND_', 'GLIBCXX_', 'LD_PRELOAD'))}
    env.update(LANG='C', LC_ALL='C', VALGRIND_OPTS='', DEBUGINFOD_URLS='')
    for e in t.env:
        k, _, v = e.partition('=')
        env[k] = v
    return env


def call(cmd, t, limit, stdout, stderr):
    p = subprocess.Popen(['/bin/sh', '-c', 'ulimit -c 0; ' + cmd], cwd=t.dir, env=clean_env(t),
                         stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                         start_new_session=True)
    timed = False
    try:
        p.wait(limit)
    except subprocess.TimeoutExpired:
        timed = True
    try:                        # the group of the session this script itself started
        os.killpg(p.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    p.wait()
    return p.returncode, timed


def filtered(t, stream, text):
    f = t.filter[stream] or ('./filter_stderr' if stream == 'stderr' else None)
    if not f:
        return text
    if not f.startswith(('/', '.')):
        f = './' + f
    r = subprocess.run(f'{f} {t.fargs[stream]}', shell=True, cwd=t.dir, input=text.encode(
        errors='replace'), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return r.stdout.decode(errors='replace')


def detector_opts(t, bare=False):
    opts = [o for o in t.opts if not re.match(r'--(xml|log)(=|-)', o)
            and not (bare and o.startswith('--suppressions='))]
    opts = ['--leak-check=no'] + opts + ['--leak-check=full', '--show-leak-kinds=all']
    return ' '.join(shlex.quote(o) for o in opts)


def once(t, a, bare=False):
    with tempfile.TemporaryDirectory(prefix='vgsuite.') as tmp:
        cmd = a.cmd.replace('{vgopts}', detector_opts(t, bare)).replace('{prog}', t.prog) \
                   .replace('{args}', t.args).replace('{out}', os.path.join(tmp, 'out'))
        so, se = os.path.join(tmp, 'stdout'), os.path.join(tmp, 'stderr')
        t0 = time.time()
        with open(so, 'wb') as o, open(se, 'wb') as e:
            rc, timed = call(cmd, t, a.limit * SLOW.get(t.name, 1), o, e)
        wall = time.time() - t0
        read = lambda f: open(f, 'rb').read(64 << 20).decode(errors='replace')
        files = {f: read(f) for f in sorted(glob.glob(os.path.join(tmp, 'out*')))}
        return Run(t, read(so), read(se), files, rc, timed), cmd, wall


def run_test(t, a):
    res = {'name': t.name, 'category': t.cat, 'needs': t.needs, 'own': t.own}
    if not t.exps:
        return dict(res, status='skipped', why='no recorded output for this platform')
    for p in t.prereq:
        r = subprocess.run(['/bin/sh', '-c', p], cwd=t.dir, env=clean_env(t),
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
        if r.returncode:
            return dict(res, status='skipped', why=f'prerequisite: {p}')
    exe = os.path.join(t.dir, shlex.split(t.prog)[0])
    if not os.path.exists(exe):
        return dict(res, status='skipped', why='program did not build')
    run, cmd, wall = once(t, a)
    rc, timed, files = run.rc, run.timed_out, run.files
    if t.cleanup:
        subprocess.run(['/bin/sh', '-c', t.cleanup], cwd=t.dir, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    obs = read_run(run)
    if a.keep:
        d = os.path.join(a.keep, t.name.replace('/', '__'))
        os.makedirs(d, exist_ok=True)
        open(os.path.join(d, 'cmd'), 'w').write(cmd + '\n')
        open(os.path.join(d, 'stdout'), 'w').write(run.stdout)
        open(os.path.join(d, 'stderr'), 'w').write(run.stderr)
        for f, x in files.items():
            open(os.path.join(d, os.path.basename(f)), 'w').write(x)
    res.update(status='ran', seconds=round(wall, 2), rc=rc, timed_out=timed, broken=obs.broken)
    seen = facts(t, obs, 'xml')
    res['observed'] = seen
    want = [facts(t, r, 'exp') for r in t.expect]
    best = None
    for w in want:
        s = score(t, w, seen)
        rank = sum(2 if v is True else 1 if v is None else 0 for v in s.values())
        if best is None or rank > best[0]:
            best = (rank, s, w)
    res['score'], res['expected'] = best[1], best[2]
    if timed:
        res['score'] = {k: (None if v is None else False) for k, v in best[1].items()}
    res['score']['output'] = None if timed else own_output(t, run, obs)
    # silence is a pass only where the same detector speaks once the suppression is gone
    res['score']['control'] = None
    if t.name in SILENCED:
        f = facts(t, read_run(once(t, a, bare=True)[0]), 'xml')
        res['score']['control'] = bool(f['errors'] or f['leaks'] or f['fatal'])
    return res


def facts(t, r, source):
    """A report as plain data; leak records the test's own options would not show are dropped."""
    mode, show = t.wants
    leaks = []
    for e, kind, b, direct, ind, blocks in r.leaks:
        if source != 'exp' and e.tail and (mode != 'full' or kind not in show):
            continue
        if source != 'exp' and not e.tail and kind not in show:
            continue
        leaks.append([kind, b, direct, ind, blocks, e.locs])
    return {
        'errors': [[e.kind, e.detail, e.lax, e.locs] for e in r.errors],
        'leaks': leaks, 'summaries': r.summaries, 'heaps': r.heaps, 'totals': r.totals,
        'fatal': r.fatal, 'source': source,
    }


def same(a, b):
    return a is None or b is None or a == b


def same_bag(want, seen, eq):
    """Equal as multisets under an eq that knows wildcards."""
    if len(want) != len(seen):
        return False
    left = list(seen)
    for w in want:
        for i, s in enumerate(left):
            if eq(w, s):
                del left[i]
                break
        else:
            return False
    return True


def score(t, want, seen):
    blur = any(d == 'N' for _, d, _, _ in want['errors'])
    key = lambda e: (e[0], 'N' if blur and e[1] in ('4', '8') else e[1])
    s = {}
    s['errors'] = Counter(map(key, want['errors'])) == Counter(map(key, seen['errors']))
    s['kinds'] = set(e[2] for e in want['errors']) == set(e[2] for e in seen['errors'])
    if want['source'] == 'exp' and '--log-fd=-1' in t.opts:
        s['errors'] = s['kinds'] = None          # the recorded run was told not to report

    def placed(w, o):
        return key(w) == key(o) and (not w[3] or tuple(w[3][0]) in [tuple(x) for x in o[3]])
    s['where'] = same_bag(sorted(want['errors'], key=lambda e: -len(e[3])), seen['errors'], placed) \
        if want['errors'] else None
    # leaks: records shown, then the summary, then (text only) the heap summary
    parts = []
    mode, _ = t.wants
    if want['leaks'] or mode == 'full':
        parts.append(same_bag(want['leaks'], seen['leaks'],
                              lambda w, o: w[0] == o[0] and all(same(x, y) for x, y in
                                                                zip(w[1:5], o[1:5]))))
    final = bool(want['heaps']) or mode != 'no'
    if want['summaries'] and final:
        def agree(w, o):
            keys = set(w) - ({'suppressed'} if 'suppressed' not in o else set())
            return all(k in o and same(w[k][0], o[k][0]) and same(w[k][1], o[k][1])
                       for k in keys)
        w = want['summaries'][-1]
        if seen['source'] == 'xml' or want['source'] == 'xml':
            parts.append(any(agree(w, o) or agree(o, w) for o in seen['summaries']))
        else:
            parts.append(same_bag(want['summaries'], seen['summaries'], agree))
    s['leaks'] = None if not parts else all(parts)
    s['heap'] = None
    known = [h for h in want['heaps'] if any(x is not None for x in h)]
    if known and seen['source'] != 'xml':
        s['heap'] = len(want['heaps']) == len(seen['heaps']) and all(
            same(x, y) for w, o in zip(want['heaps'], seen['heaps']) for x, y in zip(w, o))
    elif known and want['source'] == 'exp' and known[-1][0] is not None and seen['summaries'] \
            and len(known) == 1 and not any(w.get('suppressed', (0, 0))[1]
                                            for w in want['summaries']):
        got = [sum(v[i] for v in seen['summaries'][-1].values()) for i in (0, 1)]
        s['heap'] = got == [known[-1][0], known[-1][1]]     # in use at exit only
    s['totals'] = None if not want['totals'] or want['source'] == 'xml' \
        else counted(want, seen)
    s['fatal'] = Counter(want['fatal']) == Counter(seen['fatal']) \
        if want['fatal'] or seen['fatal'] else None
    return s


def counted(want, seen):
    if not seen['totals']:
        return False
    if seen['source'] == 'xml':         # leak records count as errors, but differently shown
        return None if want['leaks'] else list(want['totals'][-1]) in map(list, seen['totals'])
    return same_bag(want['totals'], seen['totals'], lambda x, y: list(x) == list(y))


TOOLTALK = re.compile(
    r'^\s*(at|by) 0x|^\s*\.\.\.\s*$|^ (Address|Uninitialised value was|Block was|Location|'
    r'declared at|in frame|created by|Your program|parts of|If you believe|possible|The main|'
    r'main thread stack|overflow|a result|a global variable declared|In stack guard|Bad memory|'
    r'Bad permissions|Access not|Non-existent|\.+ bytes below stack)|'
    r'^\s*(HEAP|LEAK|ERROR) SUMMARY|^\s*in use at exit|^\s*total heap usage|^All heap blocks|'
    r'^(For|Use|Rerun|Reachable|To see|Process terminating|Thread|Searching for pointers|\*0x|'
    r'block at 0x|brk segment overflow|More than|will still be|Exit program|Client|NOTE|DWARF|'
    r'FATAL: suppressions|Blocks? |Command)\b|^(\(see section|\*0x\.|  the SIG|\[\d+\] +0x)|'
    r'^\s*(of which reachable|stdstring|length64|newarray|multipleinheritance)|'
    r'W(ARNING|arning): |^   (<insert|Memcheck:|fun:|obj:|match-leak)|^\s*<|^--|^[{}]|'
    r'^_Z\w+\(.*\)|^(\[+|\]+)$|^Invalid argument$')


def own_output(t, run, obs):
    """The program's own words: stdout as recorded; every stderr line it wrote is in the record,
    and every recorded line that is not a detector's is there.  Shows whether client requests
    were answered and whether the program's behaviour is undisturbed."""
    outs = [open(f, errors='replace').read() for f in t.outs] or ['']
    if filtered(t, 'stdout', run.stdout) not in outs:
        return False
    got = Counter(norm(l) for l in filtered(t, 'stderr', obs.text).splitlines() if l.strip())
    for r in t.expect:
        text = r.text
        exp = [l for l in text.splitlines() if l.strip()]
        mine = [l for l in exp if not TOOLTALK.search(l) and not LEAKREC.search(l)
                and not SUMLINE.match(l) and not any(rx.search(l) for rx, _ in HEAD)]
        allc, need = Counter(map(norm, exp)), Counter(map(norm, mine))
        if not got - allc and not need - got:
            return True
    return False


def norm(l):
    return re.sub(r'\s+', ' ', l.strip())
