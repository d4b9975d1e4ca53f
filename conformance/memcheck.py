#!/usr/bin/env python3
"""Memcheck's own regression tests as a scoreboard for a leak checker that takes Valgrind's options and writes its XML.

  memcheck.py setup                      fetch and build only
  memcheck.py list [--needs preload]     the tests with category, needs and expectation
  memcheck.py run --tool 'leakscope run' [--needs preload] [--only REGEX] [--json FILE] [-v]
  memcheck.py run --tool 'valgrind --command-line-only=yes'      the reference

The tests come from the distribution's source package, are unpacked and built in a cache and never copied from there.
A test passes when the error kinds, the leak records and the summary equal the recorded ones.
"""
import argparse, collections, concurrent.futures as futures, json, os, re, threading

from catalogue import ORDER, read_tests
from fetch import setup
from suite import run_test

Counter = collections.Counter
COLS = ['errors', 'kinds', 'where', 'leaks', 'control', 'heap', 'totals', 'fatal', 'output']


def board(results, own):
    rows = collections.OrderedDict((c, []) for c in ORDER)
    for r in results:
        if r['status'] == 'ran' and (own or not r['own']):
            rows[r['category']].append(r)

    def cells(rs):
        out = []
        for c in ['both'] + COLS[:1] + ['found'] + COLS[1:]:
            vals = [verdict(r, c) for r in rs]
            vals = [v for v in vals if v is not None]
            out.append(f'{sum(vals)}/{len(vals)}')
        return out
    head = ['category', 'both', 'errors', 'of which', 'kinds', 'where', 'leaks', 'control', 'heap',
            'totals', 'fatal', 'output']
    table = [head, ['', '(pass)', '(equal)', 'non-empty', '(lax)', '(line)', '', '', '', '', '', '']]
    for c, rs in rows.items():
        if rs:
            table.append([c] + cells(rs))
    table.append(['all'] + cells([r for rs in rows.values() for r in rs]))
    w = [max(len(str(r[i])) for r in table) for i in range(len(head))]
    for r in table:
        print('  '.join(str(x).ljust(w[i]) if i == 0 else str(x).rjust(w[i])
                        for i, x in enumerate(r)))


def verdict(r, col):
    s = r['score']
    if col == 'both':
        if s['errors'] is None and s['leaks'] is None:
            return None
        return all(s[k] in (True, None) for k in ('errors', 'leaks', 'control'))
    if col == 'found':
        return s['errors'] if r['expected']['errors'] else None
    return s.get(col)


def show(tests):
    for t in tests:
        kinds = sorted(Counter(e.key() for e in t.expect[0].errors).items()) if t.expect else []
        leaks = Counter(k[1] for k in t.expect[0].leaks) if t.expect else {}
        print(f"{t.name:32} {t.cat:20} {t.needs:14} {'own:' + t.own if t.own else ''} "
              + ' '.join(f'{k}x{n}' for k, n in kinds)
              + (' leaks ' + ' '.join(f'{k}x{n}' for k, n in leaks.items()) if leaks else ''))


def run_all(tests, a):
    done, lock = [], threading.Lock()

    def one(t):
        try:
            r = run_test(t, a)
        except (OSError, ValueError, IndexError, AttributeError) as e:     # an unreadable report is a failure
            r = {'name': t.name, 'category': t.cat, 'needs': t.needs, 'own': t.own,
                 'status': 'failed', 'why': f'{type(e).__name__}: {e}', 'passed': False}
        if r['status'] == 'ran':
            r['passed'] = verdict(r, 'both')
        with lock:
            done.append(r)
            if a.verbose and r['status'] == 'ran':
                bad = [k for k, v in r['score'].items() if v is False]
                if bad:
                    print(f"{r['name']}: {' '.join(bad)}"
                          + (f" [{r['broken']}]" if r['broken'] else '')
                          + (' TIMEOUT' if r['timed_out'] else ''), flush=True)
    with futures.ThreadPoolExecutor(a.jobs) as ex:
        list(ex.map(one, tests))
    return sorted(done, key=lambda r: r['name'])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument('what', choices=['setup', 'list', 'run'])
    p.add_argument('--cache', default='/var/cache/leakscope-conformance/valgrind')
    p.add_argument('--tool', help='start of the command line; the options and the program follow')
    p.add_argument('--only', help='regex of test names')
    p.add_argument('--needs', help='only tests with this need')
    p.add_argument('--category', help='only this category')
    p.add_argument('--own', action='store_true', help="count the tests of Valgrind's own options too")
    p.add_argument('--json', help='result file')
    p.add_argument('--keep', help='folder for raw reports')
    p.add_argument('--jobs', type=int, default=2)
    p.add_argument('--limit', type=int, default=60, help='seconds for one test')
    p.add_argument('-v', '--verbose', action='store_true', help='say what differed')
    a = p.parse_args()
    a.cache = os.path.abspath(a.cache)
    tree = setup(a.cache, a.jobs)
    if a.what == 'setup':
        return print(tree)
    tests = [t for t in read_tests(tree)
             if (not a.only or re.search(a.only, t.name)) and (not a.needs or t.needs == a.needs)
             and (not a.category or t.cat == a.category)]
    if a.what == 'list':
        return show(tests)
    if not a.tool:
        p.error('run needs --tool')
    a.cmd = a.tool + ' --xml=yes --xml-file={out}.%p {vgopts} {prog} {args}'
    done = run_all(tests, a)
    if a.json:
        with open(a.json, 'w') as f:
            json.dump({'tool': a.tool, 'source': os.path.basename(tree), 'results': done}, f, indent=1)
    board([r for r in done if r['status'] == 'ran'], a.own)
    for r in done:
        if r['status'] != 'ran':
            print(f"{r['status']}: {r['name']}: {r['why']}")


if __name__ == '__main__':
    main()
