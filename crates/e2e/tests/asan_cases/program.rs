//! From the tables of `fixtures/asan` to the text of a program.

use leakscope_e2e::fixtures_dir;
use serde::Deserialize;

/// How a pointer travels.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    name: String,
    #[serde(default)]
    file: String,
    body: String,
    #[serde(default)]
    apart: bool,
    #[serde(default)]
    keeps: bool,
    #[serde(default)]
    jumps: bool,
    #[serde(default)]
    cpp: bool,
}

impl Flow {
    /// Whether a flaw can be put into this flow.
    pub fn fits(&self, flaw: &Flaw) -> bool {
        (!self.apart || flaw.local.is_empty()) && (!self.keeps || !flaw.leak) && (!self.jumps || !flaw.on_stack)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    name: String,
    kinds: Vec<String>,
    #[serde(default)]
    file: String,
    #[serde(default)]
    local: String,
    bad: String,
    good: String,
    #[serde(default)]
    end: String,
    #[serde(default)]
    end_good: String,
    #[serde(default)]
    cpp: bool,
    #[serde(default)]
    from_start: bool,
    #[serde(default)]
    on_stack: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Operation {
    name: String,
    sink: String,
    #[serde(default)]
    wide: bool,
    #[serde(default)]
    text: bool,
    #[serde(default)]
    beyond: bool,
}

/// What is wrong, and how it is right.
#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Flaw {
    name: String,
    /// What reports may call it.
    kinds: Vec<String>,
    #[serde(rename = "type")]
    data_type: String,
    #[serde(default)]
    file: String,
    #[serde(default)]
    local: String,
    bad: String,
    good: String,
    sink: String,
    #[serde(default)]
    end: String,
    #[serde(default)]
    end_good: String,
    #[serde(default)]
    cpp: bool,
    #[serde(default)]
    leak: bool,
    #[serde(skip)]
    on_stack: bool,
    /// A place with an operation.
    #[serde(skip)]
    pub is_combined: bool,
}

#[derive(Deserialize)]
struct Flows {
    flow: Vec<Flow>,
}

#[derive(Deserialize)]
struct Flaws {
    place: Vec<Place>,
    operation: Vec<Operation>,
    flaw: Vec<Flaw>,
}

/// Everything that cases are made of.
pub struct Table {
    /// Ways of a pointer.
    pub flows: Vec<Flow>,
    /// What can be wrong.
    pub flaws: Vec<Flaw>,
}

impl Table {
    /// Reads the tables of `fixtures/asan`.
    pub fn read() -> Table {
        let read = |name: &str| std::fs::read_to_string(fixtures_dir().join("asan").join(name)).unwrap();
        let flows: Flows = toml::from_str(&read("flows.toml")).unwrap();
        let parts: Flaws = toml::from_str(&read("flaws.toml")).unwrap();
        let mut flaws = parts.flaw;
        for place in &parts.place {
            let fitting = parts.operation.iter().filter(|operation| !(place.from_start && operation.beyond));
            flaws.extend(fitting.map(|operation| combine(place, operation)));
        }
        Table { flows: flows.flow, flaws }
    }
}

/// How `data` is filled: with '1's and an end, where it has room for one, or with zeroes.
fn preparation(operation: &Operation, count: usize) -> String {
    let (value, end) = match (operation.text, count) {
        (true, 100) => ("'1'", "data[99] = 0;"),
        (true, _) => ("'1'", ""),
        (false, _) => ("0", ""),
    };
    format!("for (int n = 0; n < {count}; n++) data[n] = {value}; {end}")
}

fn combine(place: &Place, operation: &Operation) -> Flaw {
    let element = if operation.wide { "wchar_t" } else { "char" };
    let put = |text: &str| {
        text.replace("@PREPARE_SMALL@", &preparation(operation, 80))
            .replace("@PREPARE@", &preparation(operation, 100))
            .replace("@T@", element)
    };
    Flaw {
        name: format!("{}_{}", place.name, operation.name),
        kinds: place.kinds.clone(),
        data_type: format!("{element} *"),
        file: put(&place.file),
        local: put(&place.local),
        bad: put(&place.bad),
        good: put(&place.good),
        sink: operation.sink.clone(),
        end: put(&place.end),
        end_good: put(&place.end_good),
        cpp: place.cpp,
        leak: false,
        on_stack: place.on_stack,
        is_combined: true,
    }
}

/// A flaw in a flow.
#[derive(Clone)]
pub struct Case {
    /// For messages.
    pub name: String,
    /// What reports may call it.
    pub kinds: Vec<String>,
    /// Needs C++.
    pub is_cpp: bool,
    twins: [String; 2],
}

impl Case {
    /// Puts the one into the other.
    pub fn new(flaw: &Flaw, flow: &Flow) -> Case {
        Case {
            name: format!("{}, {}", flaw.name, flow.name),
            kinds: flaw.kinds.clone(),
            is_cpp: flaw.cpp || flow.cpp,
            twins: [true, false].map(|bad| twin(flaw, flow, bad)),
        }
    }
}

/// The text of one function, with what stands before it. `@ID@` is left in it.
fn twin(flaw: &Flaw, flow: &Flow, bad: bool) -> String {
    let source = if bad { &flaw.bad } else { &flaw.good };
    let end = if bad { flaw.end.clone() } else { format!("{}{}", flaw.end, flaw.end_good) };
    let count = if bad { "80" } else { "100" };
    let put = |text: &str| {
        text.replace("@SOURCE@", &format!("{{ {source} }}"))
            .replace("@SINK@", &format!("{{ {} }}", flaw.sink))
            .replace("@TYPE@", &flaw.data_type)
    };
    format!(
        "{}\n{}\nstatic void @ID@(void) {{\n{}\n{} data = 0;\n{}\n{end}\n}}\n",
        flaw.file.replace("@COUNT@", count),
        put(&flow.file),
        flaw.local.replace("@COUNT@", count),
        flaw.data_type,
        put(&flow.body)
    )
}

const FRONT: &str = r#"
#include <alloca.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>
#include <wchar.h>
#ifdef __cplusplus
#include <list>
#include <map>
#include <string>
#include <vector>
#endif
static volatile int always = 1;
static volatile size_t seen;
static char text99[100];
static wchar_t wide99[100];
struct chain { struct chain *next; };
"#;

const BACK: &str = r#"
int main(int argc, char **argv) {
    if (argc < 3) return 2;
    size_t number = strtoul(argv[1], 0, 10), count = sizeof cases / sizeof cases[0];
    int good = argv[2][0] == 'g';
    if (!freopen("/dev/null", "w", stdout)) return 3;
    for (int n = 0; n < 99; n++) { text99[n] = '1'; wide99[n] = L'1'; }
    if (number < count) {
        cases[number][good]();
    } else {
        for (size_t n = 0; n < count; n++) cases[n][good]();
    }
    return 0;
}
"#;

/// The program of these cases.
pub fn text(cases: &[Case]) -> String {
    let mut text = FRONT.to_owned();
    let mut table = String::from("static void (*const cases[][2])(void) = {\n");
    for (number, case) in cases.iter().enumerate() {
        for (twin, which) in case.twins.iter().zip(["bad", "good"]) {
            text += &twin.replace("@ID@", &format!("case{number}_{which}"));
        }
        table += &format!("    {{case{number}_bad, case{number}_good}}, /* {} */\n", case.name);
    }
    text + &table + "};\n" + BACK
}
