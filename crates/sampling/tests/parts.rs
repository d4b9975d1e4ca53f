//! The parts of a real program that says of itself what it has allocated where.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use leakscope_sampling::parts::read_parts;
use leakscope_sampling::{Parts, Places};

/// Each line is a word and a number of megabytes to allocate and write there.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static long megabytes;

/* In blocks of 1000 bytes, which come from an arena. */
static void *small(void *unused) {
    for (long i = 0; i < megabytes * 1000; i++)
        memset(malloc(1000), 1, 1000);
    return unused;
}

int main(int argc, char **argv) {
    char word[16];
    puts("ready");
    fflush(stdout);
    while (scanf("%15s %ld", word, &megabytes) == 2) {
        size_t bytes = megabytes << 20;
        if (!strcmp(word, "heap")) {
            small(NULL);
        } else if (!strcmp(word, "arena")) {
            pthread_t thread;
            pthread_create(&thread, NULL, small, NULL);
            pthread_join(thread, NULL);
        } else if (!strcmp(word, "large")) {
            memset(malloc(bytes), 1, bytes);
        } else if (!strcmp(word, "shared")) {
            memset(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), 1, bytes);
        } else {
            FILE *file = fopen(argv[1], "w+");
            ftruncate(fileno(file), bytes);
            memset(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0), 1, bytes);
        }
        puts("done");
        fflush(stdout);
    }
}
"#;

struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn hear(&mut self) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the program has ended");
    }

    fn parts(&self) -> Parts {
        read_parts(&Places::default(), self.child.id()).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(folder: &std::path::Path) -> Program {
    let (source, program) = (folder.join("parts.c"), folder.join("parts"));
    std::fs::write(&source, PROGRAM).unwrap();
    let gcc = Command::new("gcc").args(["-O1", "-pthread", "-o"]).arg(&program).arg(&source).status();
    assert!(gcc.expect("gcc is installed").success());
    let mut child =
        Command::new(&program).arg(folder.join("file")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let mut program = Program { child, input, output };
    program.hear();
    program
}

#[test]
fn growth_is_in_the_part_that_grew() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = start(folder.path());
    let words = ["heap", "arena", "large", "file", "shared"];
    for (part, word) in words.into_iter().enumerate() {
        let before = program.parts().to_array();
        writeln!(program.input, "{word} 20").unwrap();
        program.hear();
        let after = program.parts().to_array();
        for other in 0..5 {
            let grown = after[other] as f64 - before[other] as f64;
            let expected = if other == part { 19e6..25e6 } else { -1e6..1e6 };
            assert!(expected.contains(&grown), "{word}: {} by {grown}: {before:?} {after:?}", words[other]);
        }
        assert_eq!(after[5] - before[5], u64::from(word == "arena"), "{before:?} {after:?}");
    }
    // The oracle for the whole is the kernel's own sum.
    let resident = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", program.child.id())).unwrap();
    let kilobytes = |key: &str| -> u64 {
        let line = resident.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    let sum: u64 = program.parts().to_array()[..5].iter().sum();
    assert_eq!(sum, (kilobytes("Rss:") + kilobytes("Swap:")) * 1024);
}
