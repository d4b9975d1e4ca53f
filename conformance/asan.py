#!/usr/bin/env python3
"""asan.py - LLVM 19's own compiler-rt asan/lsan tests as a scoreboard for a
replacement AddressSanitizer run-time library and for a preloaded leak checker.

Debian 12 x86-64, clang-19 + libclang-rt-19-dev + llvm-19 installed, root, apt and PyPI.
No file of LLVM's is kept beside this script: the Debian source tarball, the unpacked
tests, lit and FileCheck live under the cache (default /var/cache/leakscope-conformance/llvm).

  asan.py setup                        # fetch, unpack, venv (2 min, once)
  asan.py stock                        # baseline of clang-19's own runtimes -> cache/baseline/
  asan.py runtime  /path/to/rt.so      # score a replacement libclang_rt.asan-x86_64.so
  asan.py preload  /path/to/leak.so    # score an LD_PRELOADed leak checker (lsan tests)
  asan.py floor                        # score of a do-nothing runtime: what is won for free
  asan.py symbols                      # symbols a replacement must export, interceptors by family
(also accepted:  asan.py --runtime X.so ,  --preload X.so)

How the replacement gets in (--how): 'ldpath' (default) links against the stock library and puts a
folder with a symlink of the stock SONAME first in LD_LIBRARY_PATH (also seen by %shared_libasan);
'rpath' adds -Wl,-rpath (needed where a test execs with an empty environment); 'link' gives clang a
-resource-dir whose library is the replacement, so that symbol versions are right and a missing
symbol is a link error (no compile cache); 'preload' leaves the stock library loaded as well: two
runtimes in one process (gcc's libasan.so.8 hangs), of no use for a real runtime.

Suites: asan-dynamic asan-static lsan lsan-asan common-asan common-lsan (--suites a,b).
'total' is the number of tests the stock runtime passes in the same suite (if a baseline is
cached; else all tests that lit ran), so 100% is reachable on this machine.
"""
import argparse, collections, glob, json, os, re, shutil, signal, subprocess, sys, tempfile, textwrap, time

CACHE = os.environ.get("LEAKSCOPE_ASAN_CACHE", "/var/cache/leakscope-conformance/llvm")
V = "19"
LLVM = f"/usr/lib/llvm-{V}"
CLANG = f"{LLVM}/bin/clang"
RES = f"{LLVM}/lib/clang/{V}"
LIBDIR = f"{RES}/lib/linux"
SONAME = "libclang_rt.asan-x86_64.so"
STOCK = f"{LIBDIR}/{SONAME}"
SRC = f"{CACHE}/src/compiler-rt"
VENV = f"{CACHE}/venv"
TOOLS = f"{CACHE}/tools"
HERE = os.path.abspath(__file__)


def sh(cmd, **kw):
    return subprocess.run(cmd, shell=isinstance(cmd, str), text=True, **kw)


def say(*a):
    print(*a, file=sys.stderr, flush=True)


# ------------------------------------------------------------------ setup
def download(pkg):
    """the source package's files, by a private apt configuration as fetch.py makes it"""
    from fetch import source_stanzas
    apt = f"{CACHE}/apt"
    os.makedirs(f"{apt}/parts", exist_ok=True)
    os.makedirs(f"{apt}/lists/partial", exist_ok=True)
    stanzas, lines = source_stanzas()
    open(f"{apt}/parts/source.sources", "w").write("\n\n".join(stanzas) + "\n")
    open(f"{apt}/parts/source.list", "w").write("\n".join(lines) + "\n")
    private = (f"-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts={apt}/parts -o Dir::State::lists={apt}/lists "
               f"-o Dir::Cache::srcpkgcache= -o Dir::Cache::pkgcache= -o APT::Sandbox::User=")
    for cmd in (f"apt-get {private} update --error-on=any", f"apt-get {private} source --download-only {pkg}"):
        if sh(cmd, cwd=CACHE, stdout=subprocess.DEVNULL).returncode:
            sys.exit(f"`{cmd}` failed; the tests come from the source package {pkg} of this distribution")


def setup():
    for p in (CLANG, STOCK, f"{LLVM}/bin/llvm-symbolizer"):
        if not os.path.exists(p):
            sys.exit(f"missing {p}: apt-get install clang-{V} llvm-{V} libclang-rt-{V}-dev")
    os.makedirs(CACHE, exist_ok=True)
    pkg = f"llvm-toolchain-{V}"
    if not os.path.exists(f"{SRC}/.complete"):
        tars = glob.glob(f"{CACHE}/{pkg}_*.orig.tar.xz")
        if not tars:
            say(f"fetching {pkg} (165 MB)")
            download(pkg)
            tars = glob.glob(f"{CACHE}/{pkg}_*.orig.tar.xz")
            if not tars:
                sys.exit(f"apt-get source --download-only {pkg} left no tarball in {CACHE}")
        say("unpacking the tests")
        os.makedirs(f"{CACHE}/src", exist_ok=True)
        want = ["test/asan", "test/lsan", "test/sanitizer_common", "test/lit.common.cfg.py",
                "lib/asan/scripts", "lib/sanitizer_common/scripts", "include",
                "lib/*/*.inc"]
        r = sh(["tar", "-xJf", tars[0], "-C", f"{CACHE}/src", "--strip-components=1",
                "--wildcards"] + [f"*/compiler-rt/{w}" for w in want])
        if r.returncode or not os.path.isdir(f"{SRC}/test/asan/TestCases"):
            sys.exit("unpacking failed")
        open(f"{SRC}/.complete", "w").write(tars[0] + "\n")
    if not os.path.exists(f"{VENV}/.complete"):
        say("making the lit venv")
        sh([sys.executable, "-m", "venv", VENV], check=True)
        # lit 18.1.8: the last PyPI release of 2024; 23.x runs these tests too, but is untested here
        sh([f"{VENV}/bin/pip", "-q", "install", "lit==18.1.8", "psutil"], check=True)
        open(f"{VENV}/.complete", "w").write("")
    if not os.path.exists(f"{TOOLS}/.complete"):
        say("fetching FileCheck, not, count, split-file (package llvm-19-tools)")
        os.makedirs(TOOLS, exist_ok=True)
        for t in os.listdir(f"{LLVM}/bin"):
            link(f"{LLVM}/bin/{t}", f"{TOOLS}/{t}")
        if not os.path.exists(f"{TOOLS}/FileCheck"):
            d = f"{CACHE}/tools-deb"
            os.makedirs(d, exist_ok=True)
            if not glob.glob(f"{d}/*.deb"):
                sh(f"apt-get download llvm-{V}-tools", cwd=d, stderr=subprocess.DEVNULL, check=True)
            sh(["dpkg", "-x", glob.glob(f"{d}/*.deb")[0], d], check=True)
            for t in os.listdir(f"{d}{LLVM}/bin"):
                link(f"{d}{LLVM}/bin/{t}", f"{TOOLS}/{t}")
        r = sh([f"{TOOLS}/FileCheck", "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if r.returncode:
            sys.exit("FileCheck does not run:\n" + r.stdout)
        open(f"{TOOLS}/.complete", "w").write("")


def link(a, b):
    if os.path.lexists(b):
        os.remove(b)
    os.symlink(a, b)


# ------------------------------------------------------------------ compile cache
# A test's program does not depend on the runtime it will be run with, so a second run need not
# compile again: a clang in front of clang that remembers what a command line made (< 2 MB).
CC = f"{CACHE}/cc/clang"
WRAP = r'''#!/usr/bin/python3 -ISE
import sys, os, hashlib, subprocess
real, store = %(real)r, %(store)r
av = sys.argv[1:]
def plain(): os.execv(real, [real] + av)
if "-o" not in av or any(x in av for x in ("-", "-E", "-M", "-MD", "-###", "-save-temps", "--coverage", "-v")): plain()
out = av[av.index("-o") + 1]
if out in ("-", "/dev/null"): plain()
h = hashlib.sha256(repr((real, os.getcwd(), av)).encode())
ld = [a[2:] for a in av if a.startswith("-L")]
seen = [a for i, a in enumerate(av) if i == 0 or av[i - 1] != "-o"]
seen += ["%%s/lib%%s.so" %% (d, a[2:]) for d in ld for a in av if a.startswith("-l")]
for a in seen:
    for c in {a, a.split("=", 1)[-1], a.split(",")[-1]}:
        if os.path.isfile(c) and not c.startswith("/usr/"):
            h.update(c.encode() + b"\0" + hashlib.sha256(open(c, "rb").read()).digest())
k = store + "/" + h.hexdigest()
try:
    log = open(k + ".log", "rb").read()
    data = open(k, "rb").read()
    mode = int(log[:6]); log = log[6:]
except (OSError, ValueError):
    if os.path.lexists(out) and os.path.isfile(out): os.remove(out)
    r = subprocess.run([real] + av, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    sys.stdout.buffer.write(r.stdout)
    if r.returncode == 0 and os.path.isfile(out) and os.path.getsize(out) < 2000000:
        t = "%%s.%%d" %% (k, os.getpid())
        open(t, "wb").write(open(out, "rb").read()); os.rename(t, k)
        open(t, "wb").write(b"%%06d" %% (os.stat(out).st_mode & 0o777) + r.stdout); os.rename(t, k + ".log")
    sys.exit(r.returncode if r.returncode >= 0 else 128 - r.returncode)
if os.path.lexists(out): os.remove(out)
open(out, "wb").write(data); os.chmod(out, mode)
sys.stdout.buffer.write(log)
'''


def compile_cache():
    os.makedirs(f"{CACHE}/cc/store", exist_ok=True)
    t = CC + f".{os.getpid()}"
    open(t, "w").write(WRAP % dict(real=CLANG, store=f"{CACHE}/cc/store"))
    os.chmod(t, 0o755)
    os.rename(t, CC)


def slot(name):
    '''a work folder of a fixed name (so that command lines repeat), held by a lock'''
    import fcntl
    for i in range(20):
        d = f"{CACHE}/runs/{name}-{i}"
        os.makedirs(d, exist_ok=True)
        f = open(f"{d}.lock", "w")
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        sh(["rm", "-rf", d])
        os.makedirs(d)
        return d, f
    sys.exit("no free work folder")


# ------------------------------------------------------------------ suites
SUITES = {
    # name: (kind, cfg, extra)
    "asan-dynamic": dict(kind="asan", dyn=True),
    "asan-static": dict(kind="asan", dyn=False),
    "lsan": dict(kind="lsan", mode="Standalone", dyn=False),
    "lsan-asan": dict(kind="lsan", mode="AddressSanitizer", dyn=True),
    "common-asan": dict(kind="common", tool="asan", dyn=True),
    "common-lsan": dict(kind="common", tool="lsan", dyn=False),
}

SITE = r'''
import os, re
O = %(opts)r
config.name_suffix = "-" + O["suite"]
config.target_cflags = O["target_cflags"]
config.clang = O["clang"]
config.bits = "64"
config.arm_thumb = ""
config.asan_dynamic = O["dyn"]
config.target_arch = "x86_64"
config.lsan_lit_test_mode = O.get("mode", "")
config.tool_name = O.get("tool", "")
for k, v in dict(
    apple_platform="osx", apple_platform_min_deployment_target_flag="", target_triple="x86_64-pc-linux-gnu",
    host_arch="x86_64", host_os="Linux", llvm_build_mode="Release", llvm_src_root=O["src"], llvm_obj_root=O["llvm"],
    compiler_rt_src_root=O["src"], compiler_rt_obj_root=O["exec"], enable_per_target_runtime_dir=False,
    llvm_tools_dir=O["tools"], lit_tools_dir="", llvm_shlib_dir=O["llvm"] + "/lib",
    gnu_ld_executable="/usr/bin/ld.bfd", gold_executable="/usr/bin/ld.gold", compiler_id="Clang",
    python_executable=O["python"], compiler_rt_debug=False, compiler_rt_intercept_libdispatch=False,
    compiler_rt_output_dir=O["res"], compiler_rt_libdir=O["libdir"], emulator="", asan_shadow_scale="",
    memprof_shadow_scale="", sanitizer_can_use_cxxabi=True, sanitizer_uses_static_cxxabi=False,
    sanitizer_uses_static_unwind=False, has_lld=O["has_lld"], can_symbolize=True, use_lld=False, use_thinlto=False,
    use_lto=False, android=False, android_api_level="", android_serial="", android_files_to_push=[],
    have_rpc_xdr_h=False, gwp_asan=False, expensive_checks=False, test_standalone_build_libs=False,
    has_compiler_rt_libatomic=False, aarch64_sme=False, darwin_linker_version="", has_no_default_config_flag=True,
    test_suite_supports_overriding_runtime_lib_path=False, target_suffix="-x86_64",
    have_internal_symbolizer=False, have_zlib=True, libcxx_used=False, parallelism_group=None,
).items():
    setattr(config, k, v)
config.available_features.add("target-is-x86_64")
import lit.llvm
lit.llvm.initialize(lit_config, config)
lit_config.load_config(config, O["src"] + "/test/lit.common.cfg.py")
lit_config.load_config(config, O["cfg"])
config.test_exec_root = O["exec"]
for d in ("Darwin", "Windows", "Android", "Unit", "NetBSD", "FreeBSD"):
    config.excludes.add(d) if hasattr(config.excludes, "add") else None
new = []
for k, v in config.substitutions:
    if isinstance(v, str):
        if O["kind"] != "asan" and O["dyn"]:
            v = v.replace("-fsanitize=address", "-fsanitize=address -shared-libasan")
        if O["preload"]:
            v = v.replace("-fsanitize=leak", O["preload_flags"])
        if k == "%%run" and O["run"]:
            v = O["run"] + " "
    new.append((k, v))
config.substitutions[:] = new
if O["exit_only"]:
    config.environment["PATH"] = O["exit_tools"] + os.pathsep + config.environment["PATH"]
for k in ("LD_PRELOAD",):
    config.environment.pop(k, None)
'''


NOT_PRELOAD = {"TestCases/thread_context_crash.cpp"}  # calls a C++ function inside LLVM's liblsan.a


def overlay(d, runtime):
    """a directory that looks like clang's run-time directory, with one library swapped"""
    lib = f"{d}/lib/linux"
    os.makedirs(lib, exist_ok=True)
    for f in os.listdir(LIBDIR):
        link(f"{LIBDIR}/{f}", f"{lib}/{f}")
    link(os.path.abspath(runtime), f"{lib}/{SONAME}")
    for f in os.listdir(RES):
        if f != "lib":
            link(f"{RES}/{f}", f"{d}/{f}")
    return lib


def lsan_stub(d):
    """link-time stand-in for the __lsan_*/__sanitizer_* interface: the preloaded library's own
    definitions win at run time, a missing one is a no-op instead of a link error"""
    so = f"{d}/liblsaniface.so"
    names = dyn_defined(STOCK)
    src = ["#define N(x) __attribute__((visibility(\"default\"))) long x(void){return 0;}"]
    src += [f"N({n})" for n in sorted(names) if n.startswith(("__lsan_", "__sanitizer_"))
            and names[n] in "TW" and "sanitizer_cov" not in n and "internal" not in n]
    c = f"{d}/liblsaniface.c"
    open(c, "w").write("\n".join(src) + "\n")
    sh([CLANG, "-w", "-shared", "-fPIC", "-O1", c, "-o", so, f"-Wl,-soname,liblsaniface.so"], check=True)
    return so


def run_suite(name, a, runtime=None, preload=None, how="ldpath", exit_only=False, label="x"):
    s = SUITES[name]
    kind = s["kind"]
    compile_cache()
    work, lock = slot(f"{name}-preload" if preload else name)
    ex = f"{work}/exec"
    os.makedirs(ex)
    libdir, cflags, run, pflags = LIBDIR, " -m64", "", ""
    if s["dyn"]:
        libdir = overlay(f"{work}/res", runtime or STOCK)
    if runtime and s["dyn"]:
        if how == "link":
            cflags += f" -resource-dir={work}/res"
        elif how == "rpath":
            cflags += f" -Wl,-rpath,{libdir}"
        elif how == "preload":
            run = f"env LD_PRELOAD={os.path.abspath(runtime)}"
            libdir = LIBDIR
    if preload:
        stub = lsan_stub(work)
        pflags = f"-rdynamic -Wl,--no-as-needed {stub} -Wl,-rpath,{work} -ldl -lpthread"
        run = f"{work}/run"
        with open(run, "w") as f:  # '%run not %t' occurs: keep `not` itself out of the preload
            f.write(textwrap.dedent(f"""\
                #!/bin/sh
                N=
                if [ "$1" = not ]; then N=not; shift; fi
                exec $N env LD_PRELOAD={os.path.abspath(preload)} "$@"
                """))
        os.chmod(run, 0o755)
    et = f"{work}/exit-tools"
    os.makedirs(et)
    with open(f"{et}/FileCheck", "w") as f:
        f.write("#!/bin/sh\ncat >/dev/null 2>&1\nexit 0\n")
    os.chmod(f"{et}/FileCheck", 0o755)
    cfg = {"asan": "asan/lit.cfg.py", "lsan": "lsan/lit.common.cfg.py",
           "common": "sanitizer_common/lit.common.cfg.py"}[kind]
    o = dict(suite=name, kind=kind, dyn=s["dyn"], mode=s.get("mode", ""), tool=s.get("tool", ""),
             target_cflags=cflags, clang=CLANG if how == "link" or a.no_cache else CC, src=SRC, llvm=LLVM, res=RES, libdir=libdir, tools=TOOLS,
             exec=ex, cfg=f"{SRC}/test/{cfg}", python=sys.executable, preload=bool(preload),
             has_lld=os.path.exists(f"{LLVM}/bin/ld.lld"),
             preload_flags=pflags, run=run, exit_only=exit_only, exit_tools=et)
    with open(f"{ex}/lit.site.cfg.py", "w") as f:
        f.write(SITE % dict(opts=o))
    os.makedirs(f"{CACHE}/site", exist_ok=True)
    shutil.copy(f"{ex}/lit.site.cfg.py", f"{CACHE}/site/{name}.lit.site.cfg.py")
    out = f"{work}/lit.json"
    cmd = [f"{VENV}/bin/lit", "-q", f"-j{a.jobs}", "--timeout", str(a.timeout), "-o", out, ex]
    if a.filter:
        cmd += ["--filter", a.filter]
    env = {k: v for k, v in os.environ.items() if not re.match(r"(LD_|[A-Z]*SAN_OPTIONS|LIT_)", k)}
    t0 = time.time()
    say(f"[{time.strftime('%H:%M:%S')}] {name} ({label}) ...")
    res = {}

    def go(cmd):
        if os.path.exists(out):
            os.remove(out)
        with open(f"{work}/lit.log", "w") as log:
            p = subprocess.Popen(cmd, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True)
            try:
                p.wait()
            finally:  # stopped by a signal: take lit and the tests along
                if p.poll() is None:
                    os.killpg(p.pid, signal.SIGINT)
                    time.sleep(2)
                    os.killpg(p.pid, signal.SIGKILL)
        if not os.path.exists(out):
            sys.exit(f"lit failed, see {work}/lit.log:\n" + open(f"{work}/lit.log").read()[-3000:])
        return json.load(open(out))["tests"]

    tests = {t["name"].split(" :: ", 1)[1]: t for t in go(cmd)}
    for _ in range(a.retry):
        again = [n for n, t in tests.items() if t["code"] in ("FAIL", "TIMEOUT", "UNRESOLVED")]
        if not again:
            break
        pat = "(" + "|".join(re.escape(n) for n in again) + ")$"
        for t in go([f"{VENV}/bin/lit", "-q", "-j1", "--timeout", str(a.timeout), "-o", out, ex, "--filter", pat]):
            n = t["name"].split(" :: ", 1)[1]
            if t["code"] == "PASS":
                t["code"] = "FLAKYPASS"
            tests[n] = t
    for n, t in tests.items():
        code = t["code"]
        if preload and n in NOT_PRELOAD:
            continue
        # lit.local.cfg of a foreign OS, or a REQUIRES this machine lacks
        res[n] = dict(code=code, family=family(n, kind), s=round(t.get("elapsed") or 0, 2))
        if code not in ("PASS", "UNSUPPORTED", "XFAIL", "EXCLUDED"):
            res[n]["output"] = (t.get("output") or "")[-a.keep_output:]
    wall = time.time() - t0
    for f in glob.glob("/INVALID.*"):  # a log-path test writes there when run as root
        if os.path.getmtime(f) >= t0:
            os.remove(f)
    if a.keep:
        say(f"kept {work} (until the next run of this suite)")
    else:
        sh(["rm", "-rf", work])
    lock.close()
    return dict(suite=name, label=label, wall_s=round(wall, 1), tests=res)


# ------------------------------------------------------------------ families
FAM = [  # first match wins; on the path below TestCases/
    ("not the runtime (scripts)", r"asan_symbolize_script|asan-symbolize"),
    ("options/report/symbolize", r"atexit_stats|suppressions-|stack-trace-|debug_|scariness|stack-frame-demangle|print-stack-trace|symbolize_|options?[-.]|onprint|log-?path|external_symbol"),
    ("leak", r"leak|lsan|tsd_dtor_leak"),
    ("coverage", r"coverage|sancov"),
    ("new/delete mismatch", r"new_delete|malloc_delete|sized_delete|aligned_delete|new_array_cookie|replaceable_new"),
    ("use-after-free/quarantine", r"quarantine|stack_uaf|double-free|invalid-free|use-after-(free|delete|poison)|free_hook|gc-test"),
    ("use-after-return/scope", r"use-after-(scope|return)|(^|[/_-])uar|fake_stack"),
    ("globals/init-order", r"global|odr|init-order|initialization-|init_fini|constmerge|local_alias|function-sections|no_asan_gen"),
    ("invalid-pointer-pairs", r"invalid-pointer-pairs"),
    ("allocator limits/API", r"calloc-overflow|malloc-size|malloc_fill|max_redzone|realloc\.|oom|rlimit|mmap_limit|release_to_os|nohugepage|current_allocated|large_allocator|asan_update_alloc|allocator_|rss_limit|get_allocated|max_allocation|malloc_hook|reallocarray|allocation|soft_rss|hard_rss|decorate|purge|aligned_alloc|pvalloc|memalign|mallopt|dlsym_alloc|stack_depot"),
    ("threads/fork/signals", r"thread|fork|clone|deadlock|swapcontext|concurrent|halt_on_error-|signal|static_tls|stress_dtls|_tls|/?wait|alternate-stack|ptrace|sem_|atexit|tls_|resize_tls"),
    ("heap-overflow/access", r"heap-overflow|large_func|load_and_store|huge_negative|intra-object|wild_pointer|zero_page|inline|^partial|poison_partial|unaligned|speculative|set_shadow|force_inline|container"),
    ("stack/alloca/longjmp", r"^stack|stack-(buffer|oob|overflow)|alloca_|vla_|pass-|longjmp|noreturn|deep_(call|tail)|throw_|exception|pr33372"),
    ("coverage", r"coverage|sancov"),
    ("load/link/preload", r"preload|dlopen|dlclose|rt_confict|preinit|shared-lib-test|interface|version|sanbox|cuda|kernel-area"),
    ("options/report/symbolize", r"option|log_path|symboliz|verbos|print_|exitcode|halt_on|report|describe|no-fd|closed-fds|abort|on_error|malloc_context|profile|summary|ignorelist|default_|activation|deactivat|handle_|sigbus|null_deref|segv|^ill|high-address|non-executable|long-object|read_binary|demangle|strip_path|sleep_for|corelimit|get_module|weak_hook|dump_|print-module|dedup_|death_callback|access\.|fpe"),
    ("interceptors str*", r"str(n?dup|chr|[nl]?cat|l?cpy|xfrm|tonum|n?cpy|len|n?cmp|str|tok|toll?|tol|n?casecmp|case|nlen|err|to|spn|pbrk|cspn|ndup|ncpy)|ato(i|l)|wc"),
    ("interceptors mem*", r"mem(cpy|move|set|cmp|mem|chr)|bcmp|bzero"),
    ("interceptors printf/scanf", r"printf|scanf"),
    ("interceptors other", r"."),
]
ABI = r"^(clang_gcc_abi|PR52382|sanity_check|.*UNKNOWN)"
LFAM = [
    ("roots (globals/stack/tls/regs)", r"use_|stale_stack|tls_keys|pointer_to_self|user_pointer|unaligned|new_array|tsd"),
    ("annotations/API/suppressions", r"disabler|ignore_object|suppress|annotations|root_region|do_leak|turned_off|recoverable|default_options|log-path|leak_check_at"),
    ("threads/fork/crash", r"thread|fork|crash|segv|deadlock|signal|swapcontext|contention|guard|strace"),
    ("allocator edges", r"malloc_zero|realloc|large_alloc|too_big|dso|sanity"),
]


def family(n, kind):
    n = n.replace("TestCases/", "", 1) if n.startswith("TestCases/") else n
    n = n.replace("Linux/", "").replace("Posix/", "")
    if re.search(ABI, n) and kind != "lsan":
        return "others"
    for f, r in (LFAM if kind == "lsan" else FAM):
        if re.search(r, n):
            return f
    return "others"


GOOD = ("PASS", "FLAKYPASS")


def score(run, base=None):
    """base: the stock result of the same suite; total = what stock passes"""
    fam = collections.defaultdict(lambda: [0, 0])
    lost = []
    for n, t in run["tests"].items():
        if base is not None:
            b = base["tests"].get(n)
            if not b or b["code"] not in GOOD:
                continue
        elif t["code"] not in GOOD + ("FAIL", "TIMEOUT", "UNRESOLVED", "XPASS"):
            continue
        f = fam[family(n, SUITES[run["suite"]]["kind"])]
        f[1] += 1
        if t["code"] in GOOD:
            f[0] += 1
        else:
            lost.append(n)
    tot = [sum(x[0] for x in fam.values()), sum(x[1] for x in fam.values())]
    return dict(fam), tot, lost


def show(run, base, floor, a):
    fam, tot, lost = score(run, base)
    ffam = score(floor, base)[0] if floor else {}
    print(f"\n== {run['suite']}  [{run['label']}]  {tot[0]}/{tot[1]}"
          f"  ({'of what stock clang-19 passes' if base else 'all tests lit ran'}; {run['wall_s']:.0f} s)")
    for f in sorted(fam):
        p, t = fam[f]
        x = f"   (do-nothing runtime: {ffam[f][0]})" if f in ffam else ""
        print(f"   {f:32s} {p:4d}/{t}{x}")
    codes = collections.Counter(t["code"] for t in run["tests"].values())
    print("   lit codes: " + ", ".join(f"{k} {v}" for k, v in sorted(codes.items())))
    if floor:
        gain = [n for n, t in floor["tests"].items() if t["code"] not in GOOD
                and (not base or base["tests"].get(n, {}).get("code") in GOOD)]
        hit = [n for n in gain if run["tests"].get(n, {}).get("code") in GOOD]
        print(f"   REAL score (tests a do-nothing runtime fails): {len(hit)}/{len(gain)}")
    if a.show_failed and lost:
        for n in lost:
            print("   FAIL", n, f"[{run['tests'][n]['code']}]")
    return dict(suite=run["suite"], label=run["label"], passed=tot[0], total=tot[1], families=fam, wall_s=run["wall_s"])


# ------------------------------------------------------------------ the do-nothing runtime
def dyn_defined(so):
    out = sh(["nm", "-D", "--defined-only", so], stdout=subprocess.PIPE).stdout
    d = {}
    for l in out.splitlines():
        p = l.split()
        if len(p) == 3:
            d[p[2].split("@")[0]] = p[1]
    return d


def make_noop(dst):
    """every __asan_/__sanitizer_/__lsan_/__ubsan_ entry point of the stock library, doing nothing;
    only the shadow is mapped, and a report is a silent _exit(1)"""
    names = dyn_defined(STOCK)
    s = ["#define _GNU_SOURCE", "#include <sys/mman.h>", "#include <string.h>", "#include <unistd.h>",
         "void __asan_init(void){static int d; if(d)return; d=1;"
         "mmap((void*)0x7fff8000UL,0x100000000000UL-0x7fff8000UL+0x7fff8000UL,PROT_READ|PROT_WRITE,"
         "MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE|MAP_FIXED,-1,0);}",
         "__attribute__((constructor)) static void ctor(void){__asan_init();}",
         "void*__asan_memcpy(void*a,const void*b,size_t n){return memcpy(a,b,n);}",
         "void*__asan_memmove(void*a,const void*b,size_t n){return memmove(a,b,n);}",
         "void*__asan_memset(void*a,int b,size_t n){return memset(a,b,n);}"]
    own = {"__asan_init", "__asan_memcpy", "__asan_memmove", "__asan_memset"}
    for n, t in sorted(names.items()):
        if n in own or not re.match(r"__(asan|sanitizer|lsan|ubsan)_", n):
            continue
        if t in "TW":
            s.append(f"void {n}(void){{_exit(1);}}" if re.match(r"__asan_report_", n) else f"long {n}(void){{return 0;}}")
        else:
            s.append(f"long {n};")
    c = dst[:-3] + ".c"
    open(c, "w").write("\n".join(s) + "\n")
    sh([CLANG, "-w", "-fno-builtin", "-O1", "-shared", "-fPIC", c, "-o", dst, f"-Wl,-soname,{SONAME}"], check=True)
    return dst


# ------------------------------------------------------------------ symbols
C_SRC = r'''
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdio.h>
int g1[10]; static char g2[33]; const char *gs = "literal"; extern int ge; int *gp = &g1[3];
static jmp_buf jb;
struct B { char c[24]; }; struct BF { unsigned a:3; unsigned b:17; } bf;
typedef int v4 __attribute__((vector_size(16))); typedef int v8 __attribute__((vector_size(32)));
__attribute__((noreturn)) void die(void);
uint8_t l1(uint8_t*p){return *p;} uint16_t l2(uint16_t*p){return *p;} uint32_t l4(uint32_t*p){return *p;}
uint64_t l8(uint64_t*p){return *p;} v4 l16(v4*p){return *p;} v8 l32(v8*p){return *p;}
long double lld(long double*p){return *p;}
void s1(uint8_t*p){*p=1;} void s2(uint16_t*p){*p=1;} void s4(uint32_t*p){*p=1;} void s8(uint64_t*p){*p=1;}
void s16(v4*p){v4 z={1};*p=z;} void s32(v8*p){v8 z={1};*p=z;} void sld(long double*p){*p=1;}
typedef uint32_t u32u __attribute__((aligned(1))); typedef v4 v4u __attribute__((aligned(1)));
uint32_t lu(u32u*p){return *p;} void su(u32u*p){*p=2;} v4 lu16(v4u*p){return *p;} void su16(v4u*p){*p=*p+1;}
struct B cpy(struct B*p){return *p;} void setb(struct B*p,struct B*q){*p=*q;}
int at(int*p,long*q,unsigned __int128*r){__atomic_fetch_add(p,1,5);__sync_lock_test_and_set(q,2);
  return __atomic_load_n(p,0)+__atomic_compare_exchange_n(p,p,3,0,5,5);}
void mem(char*a,char*b,size_t n){memcpy(a,b,n);memmove(a,b,n);memset(a,0,n);strcpy(a,b);}
int alloca_(int n){char*p=alloca(n); char vla[n+1]; memset(p,0,n); vla[n]=p[0]; extern void use(void*); use(p);use(vla); return vla[0];}
int scope(int c){int*p; if(c){int x[4]; p=x; extern void use(void*); use(x);} return *p;}
int big(int i){char a[1];short b[3];int c[5];char d[100];char e[1000];char f[9000];char h[70000];extern void use2(void*,void*,void*,void*);
  use2(a,b,c,d);use2(e,f,h,0);return a[i]+b[i]+c[i]+d[i];}
int many(int i){int s=0;for(int k=0;k<i;k++){char q[200];char r[300];extern void use(void*);use(q);use(r);s+=q[k]+r[k];}return s;}
int lj(void){if(setjmp(jb))return 1;longjmp(jb,2);} void nr(int c){if(c)die();abort();}
void bfw(int v){bf.b=v;bf.a=v;} int gl(int i){return g1[i]+g2[i]+ge+gs[i];}
int *cmp(int*a,int*b){return a<b?a:b;} long sub(char*a,char*b){return a-b;}
static __thread int tl[4]; int tls(int i){return tl[i];}
'''
CXX_SRC = r'''
#include <string>
#include <vector>
#include <stdexcept>
#include <atomic>
struct P{virtual ~P(){} virtual int f(){return 1;} int x[3];}; struct Q:P{int f()override{return 2;} int y;};
struct I{I(int v):v(v){} int v;}; int other(); I gi(other()); std::string gstr("abc"); static std::vector<int> gv(4);
int thr(int i){ if(i>3) throw std::runtime_error("x"); return i; }
int cat(int i){ try{ char b[40]; b[i]=1; return thr(i)+b[i]; } catch(std::exception&e){ return 1; } }
int vec(int n){ std::vector<int> v; for(int i=0;i<n;i++) v.push_back(i); v.reserve(100); return v[n]; }
P*mk(){return new Q[3];} void del(P*p){delete[] p;} void del1(P*p){delete p;} int vf(P*p){return p->f();}
std::atomic<int> ai; std::atomic<__int128>* a16; int at(){ai++;return ai.load()+ (int)a16->load();}
int lam(int k){ int a[5]; auto f=[&](int i){a[i]=k; return a[i];}; return f(k); }
const int& dang(int k){ const int* p; { std::string s("tmp"); p=(const int*)s.data(); } return *p; }
thread_local std::string tls; int tl(){return tls.size();}
void nr() { std::terminate(); }
'''
SYM_RE = r"^__(asan|sanitizer|lsan|ubsan|sanitizer_cov|msan|tsan|hwasan)_"


def symbols(a):
    d = tempfile.mkdtemp(prefix="sym-", dir=a.tmp)
    open(f"{d}/t.c", "w").write(C_SRC)
    open(f"{d}/t.cpp", "w").write(CXX_SRC)
    # per compiler: (flags, optimisation levels, languages)
    call_c, call_g = ["-mllvm", "-asan-instrumentation-with-call-threshold=0"], ["--param", "asan-instrumentation-with-call-threshold=0"]
    rec = ["-fsanitize-recover=address"]
    both, c = ("c", "c++"), ("c",)
    flags = {"clang": [([], ("-O0", "-O2"), both), (call_c, ("-O0", "-O2"), c), (rec, ("-O1",), both),
                       (rec + call_c, ("-O1",), c),
                       (["-mllvm", "-asan-detect-invalid-pointer-cmp", "-mllvm", "-asan-detect-invalid-pointer-sub"], ("-O1",), c),
                       (["-fsanitize-address-use-after-return=always"], ("-O1",), c),
                       (["-fsanitize-address-use-after-return=never"], ("-O1",), c),
                       (["-fsanitize-address-use-odr-indicator"], ("-O1",), c), (["-mllvm", "-asan-use-stack-safety=0", "-mavx512f"], ("-O2",), c),
                       (["-fsanitize-address-field-padding=1"], ("-O1",), ("c++",))],
             "gcc": [([], ("-O0", "-O2"), both), (call_g, ("-O0", "-O2"), c), (rec, ("-O1",), both), (rec + call_g, ("-O1",), c),
                     (["-fsanitize=pointer-compare,pointer-subtract"], ("-O1",), c), (["-mavx2"], ("-O2",), c)]}
    need = {"clang": collections.Counter(), "gcc": collections.Counter()}
    dflt = {"clang": set(), "gcc": set()}
    fails = []
    for cc, exe in (("clang", CLANG), ("gcc", "gcc-12")):
        for lang, src, drv in (("c", "t.c", exe), ("c++", "t.cpp", exe + "++" if cc == "clang" else "g++-12")):
            for fl, opts, langs in flags[cc]:
                for opt in opts if lang in langs else ():
                    o = f"{d}/o.o"
                    r = sh([drv, "-w", "-fPIC", opt, "-fsanitize=address"] + fl + ["-c", f"{d}/{src}", "-o", o],
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                    if r.returncode:
                        fails.append((cc, lang, opt, fl, r.stdout[:200]))
                        continue
                    for l in sh(["nm", "-u", o], stdout=subprocess.PIPE).stdout.split():
                        if re.match(SYM_RE, l):
                            need[cc][l] += 1
                            if fl == []:
                                dflt[cc].add(l)
    ar = {}
    for n in ("libclang_rt.asan_static-x86_64.a", "libclang_rt.asan-preinit-x86_64.a"):
        out = sh(f"nm -u {LIBDIR}/{n} 2>/dev/null | awk '{{print $2}}' | grep -E '{SYM_RE}' | sort -u",
                 stdout=subprocess.PIPE).stdout.split()
        dfn = sh(f"nm --defined-only {LIBDIR}/{n} 2>/dev/null | awk '{{print $3}}' | sort -u",
                 stdout=subprocess.PIPE).stdout.split()
        ar[n] = sorted(set(out) - set(dfn))
    gpre = sh("nm -u $(gcc-12 -print-file-name=libasan_preinit.o) | awk '{print $2}' | grep __asan",
              stdout=subprocess.PIPE).stdout.split()
    stock, glib = dyn_defined(STOCK), dyn_defined(sh("gcc-12 -print-file-name=libasan.so", stdout=subprocess.PIPE).stdout.strip())
    icp = interceptors(stock)
    gicp = interceptors(glib)
    r = dict(clang19=sorted(need["clang"]), gcc12=sorted(need["gcc"]), clang19_default=sorted(dflt["clang"]),
             gcc12_default=sorted(dflt["gcc"]), clang19_archives=ar, gcc12_preinit=gpre,
             missing_in_gcc_libasan=sorted((set(need["clang"]) | set(sum(ar.values(), []))) - set(glib)),
             missing_in_clang_rt=sorted(set(need["gcc"]) - set(stock)),
             interceptors_clang={k: v for k, v in icp.items()}, interceptors_gcc={k: len(v) for k, v in gicp.items()},
             failed_compiles=fails)
    shutil.rmtree(d)
    print(json.dumps(r, indent=1))
    return r


IFAM = [
    ("C++ new/delete, exceptions", r"^_Z(n|d)|^__cxa_|^_Unwind"),
    ("malloc family", r"^(malloc|free|calloc|realloc|reallocarray|memalign|aligned_alloc|posix_memalign|valloc|pvalloc|cfree|mall(info|opt)|mallinfo2?|malloc_usable_size|malloc_stats|__libc_memalign)$"),
    ("mem*", r"^(mem|__mem|bcmp|bzero|bcopy|wmem|__bzero)"),
    ("str*/wcs*", r"^(str|__str|stp|wcs|index$|xstr|__xpg_strerror)"),
    ("ato*/strto*", r"^(ato|__isoc.*strto)"),
    ("printf", r"printf"), ("scanf", r"scanf"),
    ("threads (pthread/sem)", r"^(pthread|sem_|__pthread|thrd)"),
    ("signals/jumps/fork/exit", r"^(sig|__sig|bsd_signal|longjmp|_longjmp|siglongjmp|____longjmp|__longjmp|swapcontext|fork|vfork|makecontext|atexit|__cxa_atexit|_exit|wait|getcontext|setcontext|clone|prctl|ptrace)"),
    ("stdio/io", r"^(f(read|write|open|close|flush|dopen|puts|gets|seek|tell|memopen|reopen)|fopen|freopen|read|write|pread|pwrite|open_|puts|getline|getdelim|__getdelim|readv|writev|preadv|pwritev|send|recv|fgets|fputs|popen|_IO|ioctl|fcntl|obstack|__overflow|__uflow|__woverflow|__wuflow|__underflow|__wunderflow|_obstack|process_vm|splice|setvbuf|setbuf|fgetgrent|gets)"),
    ("net/resolver", r"(host|addr|sock|netent|ether|inet_|getserv|getproto|accept|poll|epoll|if_|recvmsg|netdb|dn_|res_)"),
    ("users/groups", r"(pw|gr(ent|nam|gid)|grouplist|shadow|sp)"),
    ("time", r"(time|clock|tm$)"),
    ("math", r"^(frexp|modf|remquo|lgamma|sincos|nan|rand|drand)"),
    ("xdr", r"^xdr"), ("dl/mmap", r"^(dl|mmap|munmap|mprotect|mincore|shm)"),
]


def interceptors(defined):
    """exported names that glibc/libstdc++/libgcc also export: what the library takes over"""
    libs = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib/x86_64-linux-gnu/libm.so.6",
            "/usr/lib/x86_64-linux-gnu/libstdc++.so.6", "/lib/x86_64-linux-gnu/libgcc_s.so.1",
            "/lib/x86_64-linux-gnu/libtirpc.so.3", "/lib/x86_64-linux-gnu/libcrypt.so.1"]
    real = set()
    for l in libs:
        if os.path.exists(l):
            real |= set(dyn_defined(l))
    fam = collections.defaultdict(list)
    for n in sorted(defined):
        if re.match(r"(___?interceptor_|__(asan|sanitizer|lsan|ubsan)_)", n) or n.startswith("_ZN"):
            continue
        if n in real or "___interceptor_" + n in defined or "__interceptor_" + n in defined:
            for f, r in IFAM:
                if re.search(r, n):
                    fam[f].append(n)
                    break
            else:
                fam["other libc"].append(n)
    return dict(fam)


# ------------------------------------------------------------------ main
def load(p):
    return json.load(open(p)) if os.path.exists(p) else None


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", nargs="?", choices=["setup", "stock", "runtime", "preload", "floor", "symbols"])
    ap.add_argument("so", nargs="?")
    ap.add_argument("--runtime"), ap.add_argument("--preload")
    ap.add_argument("--suites"), ap.add_argument("--how", default="ldpath", choices=["ldpath", "link", "rpath", "preload"])
    ap.add_argument("--filter", help="lit --filter regex"), ap.add_argument("--label")
    ap.add_argument("--json", help="write scores and each test's result here")
    ap.add_argument("--jobs", type=int, default=2), ap.add_argument("--timeout", type=int, default=60)
    ap.add_argument("--exit-too", action="store_true",
                    help="runtime/floor: a second run with FileCheck switched off: exit codes only, wording ignored")
    ap.add_argument("--retry", type=int, help="run what failed again, alone, N times (default: 1 for stock, else 0)")
    ap.add_argument("--no-cache", action="store_true", help="always compile")
    ap.add_argument("--keep", action="store_true", help="keep the work folder (binaries, outputs)")
    ap.add_argument("--keep-output", type=int, default=2500, help="chars of a failing test's output kept in the JSON")
    ap.add_argument("--show-failed", action="store_true"), ap.add_argument("--tmp", default="/tmp")
    a = ap.parse_args()
    if a.retry is None:
        a.retry = int(a.what == "stock")
    if a.runtime:
        a.what, a.so = "runtime", a.runtime
    if a.preload:
        a.what, a.so = "preload", a.preload
    if not a.what:
        ap.error("say what to run")
    if a.what in ("runtime", "preload"):
        if not a.so or not os.path.exists(a.so):
            ap.error(f"no such library: {a.so}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    setup()
    os.makedirs(a.tmp, exist_ok=True)
    if a.what == "setup":
        return print("ready:", CACHE)
    if a.what == "symbols":
        r = symbols(a)
        if a.json:
            json.dump(r, open(a.json, "w"), indent=1)
        return
    B = f"{CACHE}/baseline"
    os.makedirs(B, exist_ok=True)
    default = {"stock": "asan-dynamic,asan-static,lsan,lsan-asan,common-asan", "runtime": "asan-dynamic,lsan-asan,common-asan",
               "floor": "asan-dynamic,lsan-asan,common-asan,lsan", "preload": "lsan"}[a.what]
    runs, scores = [], []
    for s in (a.suites or default).split(","):
        kw, key = {}, f"stock-{s}"
        label = a.label or (a.what if a.what in ("stock", "floor") else os.path.basename(a.so))
        if a.what == "runtime":
            kw = dict(runtime=a.so, how=a.how)
        elif a.what == "floor":
            d = tempfile.mkdtemp(prefix="leakscope-noop-", dir=a.tmp)
            so = make_noop(f"{d}/{SONAME}")
            # for the stand-alone leak checker the do-nothing library is preloaded
            kw, key = (dict(runtime=so) if SUITES[s]["dyn"] else dict(preload=so)), f"floor-{s}"
        elif a.what == "preload":
            kw = dict(preload=a.so)
        todo = [(s, label, kw)]
        if a.what == "preload" or (a.exit_too and a.what in ("runtime", "floor")):
            todo.append((s, label + " exit-code-only", dict(kw, exit_only=True)))
        for s, lb, k in todo:
            r = run_suite(s, a, label=lb, **k)
            runs.append(r)
            if a.what in ("stock", "floor") and not a.filter and not k.get("exit_only"):
                json.dump(r, open(f"{B}/{key}.json", "w"), indent=1)
            base = None if a.what == "stock" else load(f"{B}/stock-{s}.json")
            floor = load(f"{B}/floor-{s}.json") if a.what in ("runtime", "preload") and not k.get("exit_only") else None
            if a.what != "stock" and base is None:
                say(f"no cached baseline for {s}: run '{os.path.basename(HERE)} stock --suites {s}' first for a fair total")
            scores.append(show(r, base, floor, a))
            if a.json:
                json.dump(dict(scores=scores, runs=runs), open(a.json, "w"), indent=1)


if __name__ == "__main__":
    main()
