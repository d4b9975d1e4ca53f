//! The real programs, with fixed inputs that are made afresh in one folder.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use leakscope_e2e::{Ending, Run};

use crate::step::{first_line, on_path};

/// How a program is driven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drive {
    /// It runs by itself, with this file as its input.
    Alone {
        /// Relative to the folder of inputs.
        stdin: Option<&'static str>,
    },
    /// It is given the address of a web server on the loopback interface.
    WebClient,
    /// It is redis-server, under redis-benchmark.
    Redis,
    /// It is nginx, asked for three pages.
    Nginx,
}

/// One program to compare.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its name in the table.
    pub name: &'static str,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// How it is driven.
    pub drive: Drive,
}

/// What this system has of the programs, in the table's order.
pub fn subjects() -> Vec<Subject> {
    let alone = |name, line: &str| Subject { name, argv: split(line), drive: Drive::Alone { stdin: None } };
    let fed = |name, line: &str, file| Subject { name, argv: split(line), drive: Drive::Alone { stdin: Some(file) } };
    let compiler = |name: &str| first_line(&["gcc", &format!("-print-prog-name={name}")]);
    let driven = |name, line: &str, drive| Subject { name, argv: split(line), drive };
    let all = vec![
        alone("ls", "ls -lR --time-style=+ -o tree"),
        alone("sort", "sort --parallel=1 -r words.txt"),
        alone("du", "du -ab --apparent-size tree"),
        alone("find", "find tree -name *.c -size -9k"),
        alone("grep", "grep -E -n -c (lost|leak).*[0-9]{2} words.txt"),
        alone("sed", "sed -E s/(heap|stack)[^a-z]/<\\1>/g;/lost/d words.txt"),
        alone("awk", "awk {n[$1]+=NF}END{for(k\\40in\\40n)s+=n[k];print\\40s} words.txt"),
        alone("tar", "tar --sort=name --mtime=@0 --owner=0 --group=0 -cf - tree"),
        alone("gzip", "gzip -n -c words.txt"),
        alone("xz", "xz -1 -c words.txt"),
        alone("bzip2", "bzip2 -c words.txt"),
        alone("cat", "cat -n words.txt"),
        alone("wc", "wc words.txt"),
        alone("sha256sum", "sha256sum words.txt"),
        alone("diff", "diff -u words.txt other.txt"),
        alone("file", "file -b words.txt unit.c tree"),
        alone("make", "make -s -f rules.mk all"),
        alone("bash", "bash script.sh"),
        alone("dash", "dash script.sh"),
        alone("git status", "git -C repository status --porcelain=v2 --branch"),
        alone("git log", "git -C repository log --stat -p"),
        fed("sqlite3", "sqlite3 :memory:", "script.sql"),
        alone("perl", "perl script.pl"),
        alone("python3", "/usr/bin/python3 script.py"),
        alone("cc1", &format!("{} -quiet -O2 unit.c -o -", compiler("cc1"))),
        alone("cc1plus", &format!("{} -quiet -O1 unit.cpp -o -", compiler("cc1plus"))),
        alone("as", "as unit.s -o /dev/null"),
        alone("ld", "ld -shared -o linked.so unit.o"),
        alone("objdump", "objdump -d -C unit.o"),
        alone("openssl", "openssl dgst -sha256 words.txt"),
        alone("openssl x509", "openssl x509 -in certificate.pem -noout -text"),
        alone("gdb", "gdb --nx --batch --version"),
        alone("vim", "vim -u NONE -i NONE -es -c %s/heap/HEAP/ge -c %print -c qa! words.txt"),
        fed("bc", "bc -q", "sums.bc"),
        alone("dpkg-query", "dpkg-query --show --showformat=${Package}\\40${Version}\\n gcc libc6"),
        driven("curl", "curl --silent --show-error", Drive::WebClient),
        driven("redis-server", "redis-server", Drive::Redis),
        driven("nginx", "nginx", Drive::Nginx),
        alone("node", "node --single-threaded script.js"),
        alone("java", "java -Xint -Xshare:auto -XX:+UseSerialGC -Xmx64m -version"),
    ];
    let there = |subject: &Subject| Path::new(&subject.argv[0]).is_absolute() || on_path(&subject.argv[0]);
    all.into_iter().filter(there).collect()
}

/// Words are split at blanks; `\40` stands for a blank within a word.
fn split(line: &str) -> Vec<String> {
    line.split_whitespace().map(|word| word.replace("\\40", " ")).collect()
}

/// Makes every input in `dir`, which is empty.
///
/// # Errors
/// A file cannot be written, or a program that makes an input fails.
pub fn make_inputs(dir: &Path) -> Result<()> {
    let words = words_text(4000, 1);
    let unit_c = "#include <stdlib.h>\nstruct n { struct n *l, *r; int k; };\nint depth(struct n *t) { return t ? 1 + depth(t->l) \
                  + depth(t->r) : 0; }\nstruct n *add(struct n *t, int k) { if (!t) { t = calloc(1, sizeof *t); t->k = k; } \
                  else if (k < t->k) t->l = add(t->l, k); else t->r = add(t->r, k); return t; }\n";
    let unit_cpp = "#include <map>\n#include <string>\n#include <vector>\nint count(const std::vector<std::string> &v) {\n  \
                    std::map<std::string, int> m;\n  for (auto &s : v) m[s]++;\n  return static_cast<int>(m.size());\n}\n";
    let files: &[(&str, &str)] = &[
        ("words.txt", &words),
        ("other.txt", &words_text(4000, 2)),
        ("unit.c", unit_c),
        ("unit.cpp", unit_cpp),
        ("rules.mk", "N := 1 2 3 4 5 6 7 8 9\nall: $(N:%=step%)\nstep%:\n\t@echo $@ $(words $(N))\n"),
        ("script.sh", SHELL),
        ("script.sql", SQL),
        ("script.pl", PERL),
        ("script.py", PYTHON),
        (
            "script.js",
            "const m = new Map(); for (let i = 0; i < 1000; i++) m.set('k' + i, [i]); console.log(m.size);\n",
        ),
        ("sums.bc", "scale=50\n4*a(1)\nfor (i = 1; i < 30; i++) 2^i/3\n"),
    ];
    for (name, text) in files {
        std::fs::write(dir.join(name), text)?;
    }
    for i in 0..40 {
        let folder = dir.join(format!("tree/part{}/deep{}", i % 5, i % 3));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("file{i}.c")), words_text(i * 9, i as u64 + 1))?;
    }
    for command in ["gcc -S -O1 unit.c", "gcc -c -fPIC -O1 unit.c"] {
        must(dir, command)?;
    }
    if on_path("openssl") {
        must(
            dir,
            "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out certificate.pem -subj /CN=leakscope -days 30",
        )?;
    }
    make_repository(dir)
}

fn make_repository(dir: &Path) -> Result<()> {
    if !on_path("git") {
        return Ok(());
    }
    must(dir, "git init --quiet repository")?;
    for i in 0..6u64 {
        std::fs::write(dir.join("repository/text"), words_text(60 + i as usize * 5, i + 1))?;
        std::fs::write(dir.join(format!("repository/file{i}")), words_text(20, i + 9))?;
        must(dir, "git -C repository add -A")?;
        must(
            dir,
            "git -C repository -c user.name=leakscope -c user.email=leakscope@localhost commit --quiet -m change",
        )?;
    }
    std::fs::write(dir.join("repository/text"), words_text(10, 77))?;
    Ok(())
}

fn must(dir: &Path, line: &str) -> Result<()> {
    let words = split(line);
    let run = Run::new(&words[0]).args(&words[1..]).dir(dir);
    let finished = run.finish()?;
    if finished.ending != Ending::Exit(0) {
        bail!("{}: {:?}: {}", run.shown(), finished.ending, finished.stderr);
    }
    Ok(())
}

/// Lines of pseudo-random words; the same for the same arguments.
fn words_text(lines: usize, seed: u64) -> String {
    const WORDS: &[&str] = &["heap", "lost", "stack", "leak", "site", "block", "frame", "thread", "record", "kind"];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = String::new();
    for line in 0..lines {
        for _ in 0..6 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let _ = write!(text, "{} ", WORDS[(state >> 20) as usize % WORDS.len()]);
        }
        let _ = writeln!(text, "{line} {:x}", state & 0xffff);
    }
    text
}

/// The page that the web servers give out.
pub fn make_web_root(dir: &Path) -> Result<PathBuf> {
    let root = dir.join("web");
    std::fs::create_dir_all(&root)?;
    std::fs::write(root.join("index.html"), words_text(500, 3))?;
    Ok(root)
}

const SHELL: &str = "\
count=0
for word in one two three four five six seven eight; do
    count=$((count + ${#word}))
    case $word in *e*) list=\"$list $word\" ;; esac
done
show() { printf '%s:%s\\n' \"$1\" \"$count\"; }
show \"$list\"
lines=$(while read -r first rest; do echo \"$first\"; done < words.txt)
echo \"$lines\" | { n=0; while read -r word; do n=$((n + 1)); done; echo $n; }
trap 'echo bye' EXIT
";

const SQL: &str = "\
create table t(id integer primary key, word text, n integer);
with recursive c(i) as (select 1 union all select i + 1 from c where i < 5000)
  insert into t select i, 'word' || (i * 31 % 777), i % 91 from c;
create index t_word on t(word);
select word, count(*), sum(n) from t group by word order by 3 desc, 1 limit 20;
select json_group_array(n) from (select distinct n from t order by n limit 10);
select count(*) from t a join t b on a.word = b.word where a.id < b.id;
update t set word = upper(word) where n > 50;
select max(word), min(word), avg(n) from t;
";

const PERL: &str = "\
my (%count, @lines);
open my $file, '<', 'words.txt' or die;
while (<$file>) { push @lines, $_; $count{$_}++ for split; }
print scalar(@lines), ' ', scalar(keys %count), qq{\\n};
print join(',', sort grep { /^[a-f]/ && $count{$_} > 100 } keys %count), qq{\\n};
my $tree = {}; for my $i (1 .. 500) { my $at = $tree; $at = $at->{$_} //= {} for split //, $i * 7919; }
print scalar(keys %$tree), qq{\\n};
";

const PYTHON: &str = "\
import collections, json, re
lines = open('words.txt').read().splitlines()
count = collections.Counter(word for line in lines for word in line.split())
print(len(lines), len(count), [k for k, n in sorted(count.items()) if n > 2000])
print(len(json.dumps([{'a': i, 'b': str(i) * 3} for i in range(2000)])))
print(sum(len(re.findall('l[eo][a-z]+', line)) for line in lines))
class Node:
    def __init__(self, depth): self.children = [Node(depth - 1) for _ in range(3)] if depth else []
def size(node): return 1 + sum(map(size, node.children))
print(size(Node(6)))
";
