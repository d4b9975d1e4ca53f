"""Fetches the distribution's source package of Valgrind into a cache and builds its test programs there.

Nothing outside of the cache is changed: the source index is fetched with a private apt configuration that names the
archives which this system already reads binaries from, so no root is needed.
"""
import fcntl, glob, os, re, shutil, subprocess, sys

def sh(cmd, cwd=None, log=None, check=True, hint=''):
    r = subprocess.run(cmd, shell=isinstance(cmd, str), cwd=cwd, text=True, errors='replace',
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if log:
        with open(log, 'a') as f:
            f.write(f'$ {cmd}\n{r.stdout}\n[exit {r.returncode}]\n')
    if check and r.returncode:
        sys.exit(f'{r.stdout[-2000:]}\nerror: `{cmd}` ended with {r.returncode}{hint}')
    return r


def release():
    """The name of this system's release."""
    found = re.search(r'(?m)^VERSION_CODENAME=(\w+)', open('/etc/os-release').read())
    return found[1] if found else 'stable'


def source_stanzas():
    """The archives of this system's release, as deb-src stanzas and lines."""
    name = release()
    stanzas, lines = [], []
    for f in sorted(glob.glob('/etc/apt/sources.list.d/*.sources')):
        for stanza in re.split(r'\n\s*\n', open(f).read()):
            types = re.search(r'(?m)^Types:(.*)$', stanza)
            suites = re.search(r'(?m)^Suites:(.*)$', stanza)
            if types and suites and re.match(rf'\s*({name}|stable)', suites[1]):
                stanzas.append(re.sub(r'(?m)^Types:.*$', 'Types: deb-src', stanza.strip()))
    for f in ['/etc/apt/sources.list'] + sorted(glob.glob('/etc/apt/sources.list.d/*.list')):
        if os.path.exists(f):
            lines += [re.sub(r'^deb(-src)? ', 'deb-src ', l.strip()) for l in open(f)
                      if l.startswith('deb') and f' {name}' in l]
    return stanzas, list(dict.fromkeys(lines))


def fetch(cache, log, package='valgrind'):
    apt = os.path.join(cache, 'apt')
    os.makedirs(os.path.join(apt, 'parts'), exist_ok=True)
    os.makedirs(os.path.join(apt, 'lists/partial'), exist_ok=True)
    stanzas, lines = source_stanzas()
    with open(os.path.join(apt, 'parts/source.sources'), 'w') as f:
        f.write('\n\n'.join(stanzas) + '\n')
    with open(os.path.join(apt, 'parts/source.list'), 'w') as f:
        f.write('\n'.join(lines) + '\n')
    private = (f'-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts={apt}/parts '
               f'-o Dir::State::lists={apt}/lists -o Dir::Cache::srcpkgcache= -o Dir::Cache::pkgcache= '
               f'-o APT::Sandbox::User=')
    hint = (f'; the tests come from the source package `{package}` of this distribution, which needs its package '
            f'archive over the network once. Offline: put its unpacked source into {cache}')
    sh(f'apt-get {private} update --error-on=any', log=log, hint=hint)
    # A mirror may lack the newest security update; the release's own version will do then.
    if sh(f'apt-get {private} source {package}', cwd=cache, log=log, check=False).returncode:
        sh(f'apt-get {private} source {package}/{release()}', cwd=cache, log=log, hint=hint)

def source_tree(cache, package='valgrind'):
    c = sorted(d for d in glob.glob(os.path.join(cache, f'{package}-[0-9]*')) if os.path.isdir(d))
    return c[-1] if c else None


def source(cache, package):
    """The folder of a source package, fetched when it is not there."""
    os.makedirs(cache, exist_ok=True)
    if not source_tree(cache, package):
        fetch(cache, os.path.join(cache, 'fetch.log'), package)
    return source_tree(cache, package) or sys.exit(f'error: no source of {package} in {cache} after apt-get source')


def setup(cache, jobs):
    """The source tree, with the test programs built."""
    os.makedirs(cache, exist_ok=True)
    with open(os.path.join(cache, '.lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        log = os.path.join(cache, 'setup.log')
        missing = [p for t, p in (('apt-get', 'apt'), ('dpkg-source', 'dpkg-dev'), ('gcc', 'gcc'), ('g++', 'g++'),
                                  ('make', 'make'), ('perl', 'perl')) if not shutil.which(t)]
        if missing:
            sys.exit(f"error: not installed: {' '.join(missing)}. next: cargo xtask setup")
        tree = source_tree(cache)
        if not tree:
            print('fetching the source package of Valgrind ...', flush=True)
            fetch(cache, log)
            tree = source_tree(cache) or sys.exit(f'error: no source tree in {cache} after apt-get source')
        stamp = os.path.join(tree, '.vgsuite-built')
        if not os.path.exists(stamp):
            print('building the test programs (about 3 minutes) ...', flush=True)
            sh('./configure --enable-only64bit', cwd=tree, log=log)
            j = f'-j{jobs}'
            sh(f'make {j} -k -C tests check TESTS=', cwd=tree, log=log, check=False)
            sh(f'make {j} -k -C memcheck/tests check TESTS=', cwd=tree, log=log, check=False)
            for d, what in (('none/tests', 'sem'), ('perf', 'bz2'), ('gdbserver_tests', 'gone'),
                            ('none/tests/amd64', 'insn_basic insn_fpu insn_mmx insn_sse insn_sse2')):
                sh(f'make -k -C {d} {what}', cwd=tree, log=log, check=False)
            open(stamp, 'w').close()
    return tree
