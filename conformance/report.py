"""Valgrind's reports, recorded or fresh, reduced to facts that a machine can compare: error kinds with their detail,
leak records, summaries, source lines.

Sources: docs/internals/xml-output-protocol4.txt of Valgrind 3.19 and the recorded outputs of its own tests.
"""
import collections, os, re
import xml.etree.ElementTree as ET

Counter = collections.Counter

LEAK = {'definitely lost': 'definite', 'indirectly lost': 'indirect',
        'possibly lost': 'possible', 'still reachable': 'reachable'}
XLEAK = {'Leak_DefinitelyLost': 'definite', 'Leak_IndirectlyLost': 'indirect',
         'Leak_PossiblyLost': 'possible', 'Leak_StillReachable': 'reachable'}
UNIT = {'uninitialised': 'uninit', 'unaddressable': 'unaddr'}


def num(s):
    """A number, or None for what a filter of the suite blotted out."""
    if s is None:
        return None
    s = s.replace(',', '').strip()
    return int(s) if re.fullmatch(r'[+-]?\d+', s) else None


class Err:
    __slots__ = ('kind', 'detail', 'locs', 'tail')

    def __init__(self, kind, detail='', tail=False):
        self.kind, self.detail, self.tail = kind, detail, tail
        self.locs = []

    @property
    def lax(self):
        if self.kind in ('SyscallParam', 'ClientCheck'):
            return self.kind + ':' + self.detail.split(' ')[-1]
        return self.kind

    def key(self, anysize=False):
        d = self.detail
        if anysize and d in ('4', '8'):
            d = 'N'
        return self.kind + (':' + d if d else '')


class Report:
    """What one run says, or what one recorded output says."""

    def __init__(self):
        self.errors = []          # Err, no leaks
        self.leaks = []           # (Err, kind, bytes, direct, indirect, blocks)
        self.summaries = []       # {kind: (bytes, blocks)}
        self.heaps = []           # (in_use_bytes, in_use_blocks, allocs, frees, total)
        self.totals = []          # (errors, contexts)
        self.fatal = []           # signal names
        self.text = ''            # the program's own stderr
        self.broken = ''          # why the report could not be read to its end
        self.docs = 0


HEAD = [
    (re.compile(r'Invalid (read|write) of size (\d+|N)\b'),
     lambda m: ('Invalid' + m[1].capitalize(), m[2])),
    (re.compile(r'Conditional jump or move depends on uninitialised value'),
     lambda m: ('UninitCondition', '')),
    (re.compile(r'Use of uninitialised value of size (\d+|N)\b'),
     lambda m: ('UninitValue', m[1])),
    (re.compile(r'Syscall param (\S.*?) (contains|points to) (uninitialised|unaddressable) byte'),
     lambda m: ('SyscallParam', f'{sysname(m[1])} {UNIT[m[3]]}')),
    (re.compile(r'Invalid free\(\) / delete / delete\[\] / realloc\(\)'),
     lambda m: ('InvalidFree', '')),
    (re.compile(r'Mismatched free\(\) / delete / delete ?\[\]'),
     lambda m: ('MismatchedFree', '')),
    (re.compile(r'Source and destination overlap in ([\w@.]+)'),
     lambda m: ('Overlap', funname(m[1]))),
    (re.compile(r'Jump to the invalid address stated on the next line'),
     lambda m: ('InvalidJump', '')),
    (re.compile(r"Argument '(\w+)' of function (\S+) has a fishy"),
     lambda m: ('FishyValue', f'{m[2]}({m[1]})')),
    (re.compile(r'^Illegal memory pool address$'), lambda m: ('InvalidMemPool', '')),
    (re.compile(r'(Uninitialised|Unaddressable) byte\(s\) found during client check'),
     lambda m: ('ClientCheck', UNIT[m[1].lower()])),
    (re.compile(r'^(?!Syscall)(\S.*) contains (uninitialised|unaddressable) byte\(s\)$'),
     lambda m: ('CoreMemError', UNIT[m[2]])),
]
N = r'([\d,]+|x|\.\.\.)'
D = r'(?: \([+-][\dx,]+\))?'
LEAKREC = re.compile(
    N + D + r'(?: \(' + N + D + r' direct, ' + N + D + r' indirect\))? bytes in ' + N + D +
    r' blocks are (definitely lost|indirectly lost|possibly lost|still reachable) in loss record')
SUMLINE = re.compile(r'^\s*(definitely lost|indirectly lost|possibly lost|still reachable|'
                     r'suppressed): ' + N + D + ' bytes in ' + N + D + ' blocks')
INUSE = re.compile(r'in use at exit: ' + N + r' bytes in ' + N + ' blocks')
USAGE = re.compile(r'total heap usage: ' + N + ' allocs, ' + N + ' frees, ' + N + ' bytes')
TOTAL = re.compile(r'ERROR SUMMARY: (\d+) errors from (\d+) contexts')
FATAL = re.compile(r'Process terminating with default action of signal \w+ \((SIG\w+)')
FRAME = re.compile(r'^\s+(?:at|by) 0x')
LINE = re.compile(r'\(([^()\s]+\.\w+):(\d+)\)\s*$')


def funname(s):
    return re.sub(r'^(__GI_|__)(?=mem|str)', '', s.split('@')[0])


def sysname(s):
    s = s.replace('exit_group(status)', 'exit(status)')
    return s.replace('ppoll(ufds', 'poll(ufds')


def parse_text(text):
    """Facts of Valgrind's text report, line prefixes already taken off."""
    r = Report()
    cur = None
    stack_open = False
    tail = False
    for line in text.splitlines():
        if FRAME.match(line):
            if stack_open and cur is not None:
                m = LINE.search(line)
                if m and int(m[2]):
                    cur.locs.append((os.path.basename(m[1]), int(m[2])))
            continue
        if line.strip() == '...' and stack_open:
            continue
        stack_open = False
        m = LEAKREC.search(line)
        if m:
            cur = Err('Leak_' + LEAK[m[5]], tail=tail)
            stack_open = True
            r.leaks.append((cur, LEAK[m[5]], num(m[1]), num(m[2]), num(m[3]), num(m[4])))
            continue
        for rx, make in HEAD:
            m = rx.search(line)
            if m:
                cur = Err(*make(m))
                stack_open = True
                r.errors.append(cur)
                break
        else:
            m = SUMLINE.match(line)
            if m and r.summaries:
                r.summaries[-1][LEAK.get(m[1], m[1])] = (num(m[2]), num(m[3]))
                continue
            if 'LEAK SUMMARY:' in line:
                r.summaries.append({})
            elif 'HEAP SUMMARY:' in line:
                tail = True
            elif 'All heap blocks were freed' in line:
                r.summaries.append({k: (0, 0) for k in list(LEAK.values()) + ['suppressed']})
            elif (m := INUSE.search(line)):
                r.heaps.append([num(m[1]), num(m[2]), None, None, None])
            elif (m := USAGE.search(line)) and r.heaps:
                r.heaps[-1][2:] = [num(m[1]), num(m[2]), num(m[3])]
            elif (m := TOTAL.search(line)):
                r.totals.append((int(m[1]), int(m[2])))
            elif (m := FATAL.search(line)):
                r.fatal.append(m[1])
    r.docs = 1
    return r


def parse_xml(text):
    """Facts of one Valgrind XML document; a cut-off one is read as far as it goes."""
    r = Report()
    i = text.find('<?xml')
    text = text[i if i > 0 else 0:]
    text = re.sub(r'[\x00-\x08\x0b\x0c\x0e-\x1f]', '?', text)
    p = ET.XMLPullParser(['end'])
    events = []
    try:
        p.feed(text)
        events = list(p.read_events())
        p.close()
        events += list(p.read_events())
    except ET.ParseError as e:
        try:
            events += list(p.read_events())
        except ET.ParseError:
            pass
        if not text.rstrip().endswith('</valgrindoutput>') or not events:
            r.broken = f'xml: {e}'
    finished = False
    counts = {}
    contexts = set()
    for _, el in events:
        if el.tag == 'status':
            finished = finished or (el.findtext('state') or '').strip() == 'FINISHED'
        elif el.tag == 'valgrindoutput':
            r.docs += 1
        elif el.tag == 'fatal_signal':
            r.fatal.append((el.findtext('signame') or '').strip())
        elif el.tag == 'pair' and el.find('unique') is not None:
            counts[el.findtext('unique').strip()] = num(el.findtext('count')) or 0
        elif el.tag == 'error':
            kind = (el.findtext('kind') or '?').strip()
            what = (el.findtext('what') or el.findtext('xwhat/text') or '').strip()
            uniq = (el.findtext('unique') or '').strip()
            if kind in XLEAK:
                e = Err(kind, tail=finished)
                m = LEAKREC.search(what)
                if m:
                    rec = (num(m[1]), num(m[2]), num(m[3]), num(m[4]))
                else:
                    rec = (num(el.findtext('xwhat/leakedbytes')), None, None,
                           num(el.findtext('xwhat/leakedblocks')))
                r.leaks.append((e, XLEAK[kind]) + rec)
            else:
                contexts.add(uniq)
                e = None
                for rx, make in HEAD:
                    m = rx.search(what)
                    if m:
                        k, d = make(m)
                        # the element decides the kind, the sentence only the detail
                        e = Err(kind, d if k == kind else '')
                        break
                e = e or Err(kind)
                r.errors.append(e)
            st = el.find('stack')
            for f in (st.findall('frame') if st is not None else []):
                n, fl = num(f.findtext('line')), f.findtext('file')
                if fl and n:
                    e.locs.append((os.path.basename(fl.strip()), n))
    if finished:
        s = {k: [0, 0] for k in LEAK.values()}
        for e, kind, b, direct, ind, blocks in r.leaks:
            if e.tail:
                s[kind][0] += (direct if direct is not None else b) or 0
                s[kind][1] += blocks or 0
        r.summaries.append({k: tuple(v) for k, v in s.items()})
    r.totals.append((sum(counts.get(u, 1) for u in contexts), len(contexts)))
    return r


def merge(reports):
    out = Report()
    for r in reports:
        for a in ('errors', 'leaks', 'summaries', 'heaps', 'totals', 'fatal'):
            getattr(out, a).extend(getattr(r, a))
        out.broken = out.broken or r.broken
        out.docs += r.docs
    return out
