"""Which of Memcheck's regression tests there are, what each needs of a detector, and what it expects."""
import glob, os, re, shlex

from report import LEAK, parse_text, parse_xml

DIRS = ['memcheck/tests', 'memcheck/tests/linux', 'memcheck/tests/amd64',
        'memcheck/tests/amd64-linux']

CAT = {
 'leak': '''leak-0 leak-cases-full leak-cases-possible leak-cases-summary leak-cycle leak-delta
   leak-segv-jmp leak-tree leak_cpp_interior lks nanoleak2 pointer-trace reach_thread_register
   static_malloc trivialleak error_counts linux/dlclose_leak linux/dlclose_leak-no-keep''',
 'heap errors': '''accounting badaddrvalue badfree badfree-2trace badfree3 badrw
   big_blocks_freed_list big_debuginfo_symbol brk2 bug155125 bug287260 calloc-overflow clo_redzone_128
   clo_redzone_default cxx17_aligned_new demangle demangle-rust doublefree errs1 exitprog fprw
   inline mallinfo malloc1 malloc2 malloc3 malloc_free_fill malloc_usable memalign2
   memalign_test mismatches new_nothrow new_override overlap partial_load_dflt partial_load_ok
   pdb-realloc realloc1 realloc2 realloc3 sbfragment sized_delete stpncpy str_tester
   test-plo-no test-plo-yes wcs wrapmalloc wrapmallocstatic malloc1_ks_alloc
   malloc1_ks_alloc_and_free malloc1_ks_free malloc1_ks_none''',
 'definedness': '''atomic_incs badloop bug340392 cdebug_zlib cdebug_zlib_gnu cond_ld cond_st
   holey_buffer_too_small inits inlinfo inltemplate linux/with-space manuel1 manuel2 manuel3
   memcmptest metadata origin1-yes origin2-not-quite origin3-no origin4-many origin5-bz2
   origin6-fp partiallydefinedeq pdb-realloc2 post-syscall resvn_stack sh-mem sh-mem-random
   strchr undef_malloc_args vcpu_bz2 vcpu_fbench vcpu_fnfns dw4 varinfo1 varinfo2 varinfo3
   varinfo4 varinfo5 varinfo6 varinforestrict amd64/* amd64-linux/defcfaexpr''',
 'syscalls': '''badpoll buflen_check erringfds execve1 execve2 file_locking fwrite mmaptest
   null_socket pipe sendmsg writev1 linux/brk linux/capget linux/enomem linux/getregset
   linux/ioctl-tiocsig linux/memfd_create linux/proc-auxv linux/rfcomm linux/sigqueue
   linux/sys-copy_file_range linux/sys-execveat linux/sys-openat linux/sys-preadv2_pwritev2
   linux/sys-preadv_pwritev linux/sys-statx linux/syscalls-2007 linux/syslog-syscall
   linux/timerfd-syscall sem''',
 'client-request': '''addressable client-msg client-msg-as-xml clientperm clireq_nofill
   custom-overlap custom_alloc describe-block err_disable1 err_disable2 err_disable3 err_disable4
   err_disable_arange1 leak-autofreepool-0 leak-autofreepool-1 leak-autofreepool-2
   leak-autofreepool-4 leak-autofreepool-5 leak-autofreepool-6 leak-pool-0 leak-pool-1
   leak-pool-2 leak-pool-3 leak-pool-4 leak-pool-5 mempool mempool2 recursive-merge
   nanoleak_dynsupp wrap1 wrap2 wrap3 wrap4 wrap5 wrap6 wrap7 wrap8''',
 'signals/threads': '''badjump badjump2 deep-backtrace descr_belowsp gone_abrt_xml noisy_child
   sigaltstack sigkill signal2 sigprocmask thread_alloca threadname threadname_xml
   linux/lsframe1 linux/lsframe2 linux/stack_changes linux/stack_switch
   amd64-linux/access_below_sp_1 amd64-linux/access_below_sp_2 amd64-linux/int3-amd64''',
 'suppressions/options': '''exit_on_first_error exit_on_first_error_with_xml inlinfosupp
   inlinfosuppobj long-supps long_namespace_xml match-overrun nanoleak_supp supp-dir supp1 supp2
   supp_unknown suppfree suppfreecollision supponlyobj suppsrc_lineno suppsrc_sanlineno
   suppvarinfo5 xml1''',
}
ORDER = list(CAT) + ['other']

# Tests that say something only about Valgrind itself: its options, its inside, its wording.
OWN = {
 'unit_libcbase': 'unit test of code inside Valgrind',
 'unit_oset': 'unit test of code inside Valgrind',
 'leak-autofreepool-5': 'expects Valgrind to abort on its own assertion',
 'linux/debuginfod-check': 'needs a debuginfod server',
 'supp-dir': 'wording of a start-up refusal',
 'error_counts': 'report switched off; checks counters by client request',
 'linux/lsframe1': '--main-stacksize', 'linux/lsframe2': '--main-stacksize',
 'amd64-linux/access_below_sp_1': '--ignore-range-below-sp',
 'err_disable_arange1': '--ignore-ranges and its client request',
 'noisy_child': '--child-silent-after-fork',
 'clo_redzone_128': '--redzone-size', 'clo_redzone_default': '--redzone-size',
 'malloc1_ks_alloc': '--keep-stacktraces', 'malloc1_ks_alloc_and_free': '--keep-stacktraces',
 'malloc1_ks_free': '--keep-stacktraces', 'malloc1_ks_none': '--keep-stacktraces',
 'linux/dlclose_leak-no-keep': '--keep-debuginfo=no',
 'big_blocks_freed_list': '--freelist-vol/--freelist-big-blocks',
 'partial_load_ok': '--partial-loads-ok', 'test-plo-yes': '--partial-loads-ok',
 'test-plo-no': '--partial-loads-ok', 'amd64/sh-mem-vec128-plo-no': '--partial-loads-ok',
 'amd64/sh-mem-vec128-plo-yes': '--partial-loads-ok',
 'amd64/sh-mem-vec256-plo-no': '--partial-loads-ok',
 'amd64/sh-mem-vec256-plo-yes': '--partial-loads-ok',
 'recursive-merge': '--merge-recursive-frames, backtrace by client request',
 'client-msg': 'message by client request', 'client-msg-as-xml': 'message by client request',
 'sized_delete': 'checks the --trace-malloc trace',
 'dw4': '--read-var-info (naming variables)', 'varinforestrict': '--read-var-info',
 'static_malloc': '--soname-synonyms', 'new_override': '--soname-synonyms',
 **{f'varinfo{i}': '--read-var-info (naming variables)' for i in range(1, 7)},
 **{f'wrap{i}': 'function wrapping by client request' for i in range(1, 9)},
 **{f'err_disable{i}': 'error reporting switched by client request' for i in range(1, 5)},
 'nanoleak_dynsupp': 'options changed by client request',
}

# Where counting kinds does not say what a detector needs.
NEEDS = {
 'reach_thread_register': 'preload', 'static_malloc': 'cpu-clean', 'error_counts': 'client',
 'malloc_free_fill': 'preload', 'mallinfo': 'preload', 'malloc_usable': 'preload',
 'calloc-overflow': 'preload', 'cxx17_aligned_new': 'preload', 'memalign2': 'preload',
 'new_nothrow': 'preload', 'pdb-realloc': 'preload', 'realloc1': 'preload',
 'realloc2': 'preload', 'sbfragment': 'preload', 'sized_delete': 'preload',
 'nanoleak2': 'preload', 'nanoleak_supp': 'preload', 'suppfreecollision': 'preload',
 'suppsrc_sanlineno': 'preload', 'leak-0': 'preload', 'leak-cases-summary': 'preload',
 'bug287260': 'preload', 'wrapmalloc': 'preload', 'wrapmallocstatic': 'cpu-clean',
 'new_override': 'preload', 'nanoleak_dynsupp': 'client',
 # silent only because a suppression fits: the finding itself needs this much
 'supp1': 'definedness', 'supp2': 'definedness', 'suppvarinfo5': 'definedness',
 'inlinfosupp': 'definedness', 'supp_unknown': 'addressability', 'long-supps': 'addressability',
 'match-overrun': 'client', 'custom-overlap': 'client',
}
SILENCED = {'supp1', 'supp2', 'suppvarinfo5', 'inlinfosupp', 'supp_unknown', 'long-supps',
            'match-overrun', 'suppfreecollision', 'suppsrc_sanlineno', 'nanoleak_supp'}


# Stress tests that are given more than --limit.
SLOW = {'thread_alloca': 4}


class Test:
    pass


def read_tests(tree):
    tests = []
    for d in DIRS:
        for f in sorted(glob.glob(os.path.join(tree, d, '*.vgtest'))):
            t = Test()
            base = os.path.basename(f)[:-7]
            sub = os.path.relpath(d, 'memcheck/tests')
            t.name = base if sub == '.' else f'{sub}/{base}'
            t.base, t.dir = base, os.path.join(tree, d)
            v = {'env': [], 'vgopts': [], 'prereq': []}
            for l in open(f, errors='replace'):
                m = re.match(r'\s*([\w-]+):\s*(.*?)\s*$', l)
                if m and not l.startswith('#'):
                    if m[1] in ('env', 'vgopts', 'prereq'):
                        v[m[1]].append(m[2])
                    else:
                        v[m[1]] = m[2]
            t.prog = v.get('prog', v.get('prog-asis', ''))
            if 'prog' in v and not t.prog.startswith('/'):
                t.prog = './' + t.prog
            t.args = v.get('args', '')
            t.vgopts = ' '.join(v['vgopts']).replace('${PWD}', t.dir)
            t.env, t.prereq = v['env'], v['prereq']
            t.cleanup = v.get('cleanup')
            t.filter = {s: v.get(f'{s}_filter') for s in ('stdout', 'stderr')}
            t.fargs = {s: v.get(f'{s}_filter_args', base) for s in ('stdout', 'stderr')}
            t.exps = expected_files(t, 'stderr')
            t.outs = expected_files(t, 'stdout')
            t.own = OWN.get(t.name, '')
            t.cat = next((c for c, names in CAT.items() for n in names.split()
                          if n == t.name or n.endswith('/*') and t.name.startswith(n[:-1])), 'other')
            t.opts = shlex.split(t.vgopts)
            t.xml = '--xml=yes' in t.opts
            t.wants = wanted(t)
            tests.append(t)
            src = ''
            first = os.path.join(t.dir, shlex.split(t.prog)[0])
            for e in ('.c', '.cpp', '.S'):
                if os.path.exists(first + e):
                    src = open(first + e, errors='replace').read()
            t.requests = sorted(set(re.findall(
                r'\bVALGRIND_(?!H)[A-Z_0-9]+|\bGET_FINAL_LEAK_COUNTS|\bRUNNING_ON_VALGRIND', src)))
            t.expect = [expectation(t, p) for p in t.exps]
            t.needs = needs(t)
    return tests


def expected_files(t, stream):
    """The recorded outputs that may hold on 64-bit x86 Linux."""
    files = sorted(glob.glob(os.path.join(glob.escape(t.dir), glob.escape(t.base) +
                                          f'.{stream}.exp*')))
    files = [f for f in files if not f.endswith(('~', '#'))]
    tag = lambda f: os.path.basename(f)[len(t.base) + len(stream) + 5:]
    bad = re.compile(r'bsd|solaris|darwin|mips|ppc|s390|clang|32(?!8)|(?<!non)-arm$|x86$')
    keep = [f for f in files if not bad.search(tag(f)) and not tag(f).startswith('r-')]
    wide = [f for f in keep if re.fullmatch(r'64|-(le)?64(bit)?(-non-arm)?|-64bit.*', tag(f))]
    if wide:
        keep = [f for f in keep if f in wide or tag(f) not in ('',)]
    return keep


def wanted(t):
    """leak check mode and shown kinds that the test's options select."""
    mode, show = 'no', {'definite', 'possible'}
    for o in t.opts:
        if o.startswith('--leak-check='):
            mode = {'yes': 'full'}.get(o[13:], o[13:])
        elif o == '--show-reachable=yes':
            show = set(LEAK.values())
        elif o == '--show-reachable=no':
            show = {'definite', 'possible'}
        elif o == '--show-possibly-lost=no':
            show = show - {'possible'}
        elif o.startswith('--show-leak-kinds='):
            v = o.split('=')[1]
            show = set(LEAK.values()) if v == 'all' else set() if v == 'none' else set(v.split(','))
    if t.xml:
        mode = 'full'
    return mode, show


def expectation(t, path):
    text = open(path, errors='replace').read()
    if '<valgrindoutput>' in text:
        i, j = text.find('<?xml'), text.rfind('</valgrindoutput>')
        r = parse_xml(text[i:j + len('</valgrindoutput>')])
        r.text = text
        r.summaries, r.totals = [], []       # not stated there
    else:
        r = parse_text(text)
        r.text = text
    r.path = path
    return r


def needs(t):
    if t.name in NEEDS:
        return NEEDS[t.name]
    kinds = set(e.kind + e.detail for r in t.expect for e in r.errors)
    sysk = any(k.startswith('SyscallParam') for k in kinds)
    act = [q for q in t.requests if not re.search(
        'COUNT|LEAK_COUNTS|RUNNING_ON|MONITOR|STACK_REG|STACK_DEREG|PRINTF', q)]
    kk = set(e.kind for r in t.expect for e in r.errors)
    if any('uninit' in k or k.startswith('Uninit') for k in kinds):
        return 'definedness'
    if act and (kk or any(r.leaks or r.summaries for r in t.expect)):
        return 'client'
    if sysk:
        return 'syscall-addr'
    if kk & {'InvalidRead', 'InvalidWrite', 'InvalidJump', 'ClientCheck'}:
        return 'addressability'
    if kk or any(r.leaks or r.summaries for r in t.expect):
        return 'preload'
    if t.cat == 'leak':
        return 'preload'
    return 'client-clean' if act else 'cpu-clean'
