//! Everything that is refused in files, with its text; and the bounds.

use std::fmt::Write as _;

use super::*;

fn tree(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

const GOOD: [(&str, &str); 6] = [
    ("limits.toml", "maximum_duration = \"8h\"\n"),
    ("resources.toml", "[[resource]]\nname = \"db\"\naddresses = [\"10.0.0.7\"]\nports = [\"tcp/5432\"]\n"),
    ("hosts.toml", "[[host]]\nname = \"app\"\n"),
    (
        "subjects.toml",
        "[[subject]]\nid = \"user:alice\"\n[[group]]\nname = \"dba\"\nmembers = [\"user:alice\"]\n",
    ),
    (
        "roles.toml",
        "[[role]]\nname = \"debug\"\nto = [\"group:dba\"]\nresources = [\"db\"]\nhosts = [\"*\"]\nautomatic = true\n",
    ),
    ("conditions/a.cedar", "@id(\"mfa\") forbid (principal, action, resource) unless { context.mfa };\n"),
];

/// What is told of a good policy in which these files are exchanged.
fn told(files: &[(&str, &str)]) -> String {
    let mut all = tree(&GOOD);
    all.extend(tree(files));
    match read(&all) {
        Ok(_) => "fine\n".to_owned(),
        Err(problems) => problems.iter().fold(String::new(), |mut text, problem| {
            let _ = writeln!(text, "{problem}");
            text
        }),
    }
}

/// Every refusal, with its place, its value and its next step.
#[test]
fn problems() {
    let mut text = told(&[]);
    let files: &[(&str, &[&str])] = &[
        (
            "limits.toml",
            &[
                "",
                "maximum_duration = 8\n",
                "maximum_duration = \"8h",
                "maximum_duration = \"8h\"\nmaximum_durations = \"9h\"\n",
                "maximum_duration = \"0s\"\nmaximum_idle = \"soon\"\n",
                "maximum_duration = \"8h\"\n[[window]]\nname = \"w\"\ndays = [\"monday\"]\nfrom = \"9:00\"\nto = \"24:01\"\nzone = \"Berlin\"\n\
                 [[window]]\nname = \"w\"\ndays = []\nfrom = \"24:00\"\nto = \"00:00\"\nzone = \"UTC\"\n\
                 [[window]]\nname = \"v\"\ndays = [\"mon\"]\nfrom = \"09:00\"\nto = \"09:00\"\nzone = \"UTC\"\n\
                 [[maintenance]]\nname = \"w\"\nfrom = \"2026-12-01\"\nto = \"2026-12-01T10:00:00Z\"\n\
                 [[maintenance]]\nname = \"m\"\nfrom = \"2026-12-01T10:00:00Z\"\nto = \"2026-12-01T10:00:00+01:00\"\n",
            ],
        ),
        (
            "resources.toml",
            &[
                "[[resource]]\nname = \"dЬ\"\naddresses = [\"10.0.0.300\", \"10.0.0.7/8\"]\nports = [\"5432\"]\nlabels = { Env = \"prod\" }\n[[resource]]\nname = \"db\"\n[[resource]]\nname = \"db\"\nunix = [\"run/db\"]\n",
            ],
        ),
        ("hosts.toml", &["[[host]]\nname = \"control-plane\"\n[[host]]\nname = \"a\"\nlabel = {}\n"]),
        (
            "subjects.toml",
            &[
                "[[subject]]\nid = \"alice\"\n[[subject]]\nid = \"user:аlice\"\n[[subject]]\nid = \"user:alice\"\nmanager = \"user:alice\"\n[[subject]]\nid = \"user:alice\"\nmanager = \"user:bob\"\n\
                 [[group]]\nname = \"dba\"\nmembers = [\"user:bob\", \"group:nobody\", \"everybody\"]\n[[group]]\nname = \"dba\"\n[[on_call]]\nname = \"db\"\nsubjects = [\"user:bob\"]\n",
                "[[group]]\nname = \"dba\"\nmembers = [\"group:b\"]\n[[group]]\nname = \"b\"\nmembers = [\"group:c\"]\n[[group]]\nname = \"c\"\nmembers = [\"group:dba\"]\n[[group]]\nname = \"own\"\nmembers = [\"group:own\"]\n",
            ],
        ),
        (
            "roles.toml",
            &[
                "[[role]]\nname = \"debug\"\n",
                "[[role]]\nname = \"debug\"\nto = [\"group:dbas\", \"user:bob\", \"manager\", \"on-call:db\"]\nresources = [\"db2\", \"env=a b\"]\nhosts = [\"app2\"]\ndefault_duration = \"2h\"\nmaximum_duration = \"1h\"\nclock = \"soon\"\nextension = { times = 0, by = \"1h\" }\n\
                 [[role.step]]\napprovers = []\ncount = 0\nafter = \"1h\"\n[[role.step]]\napprovers = [\"workload:x\", \"everybody\"]\nafter = \"1h\"\nthen = \"wait\"\n[[role.step]]\napprovers = [\"manager\"]\nafter = \"1h\"\nthen = \"escalate\"\n[[role.step]]\napprovers = [\"manager\"]\nto = [\"user:alice\"]\n",
                "[[role]]\nname = \"debug\"\nto = [\"hook:risk\"]\nresources = [\"*\"]\nhosts = [\"*\"]\n[[role.step]]\napprovers = [\"hook:Risk\", \"hook:risk\"]\n[[role.step]]\napprovers = [\"hook:risk\"]\nafter = \"1h\"\nthen = \"escalate\"\nto = [\"hook:other\"]\n",
                "[[role]]\nname = \"debug\"\nresources = [\"*\"]\nhosts = [\"*\"]\nautomatic = true\n[[role.step]]\napprovers = [\"manager\"]\n[[role]]\nname = \"debug\"\nresources = [\"*\"]\nhosts = [\"*\"]\nautomatic = true\n",
            ],
        ),
        (
            "conditions/a.cedar",
            &[
                "permit (principal, action, resource);",
                "@id(\"A\") permit (principal, action, resource);",
                "@id(\"a\") permit (principal, action, resource);\n@id(\"a\") forbid (principal, action, resource);",
                "@id(\"a\") permit (principal, action, resource",
                "@id(\"a\") permit (principal == ?principal, action, resource);",
                "@id(\"a\") @why(\"x\") permit (principal, action, resource);",
                "@id(\"a\") permit (principal in Group::\"dbа\", action, resource == Role::\"debug2\") when { context.windows.contains(Window::\"night\") && context.hosts.contains(Host::\"a\") && context.resource == Resource::\"b\" };",
                "@id(\"a\") permit (principal == User::\"bob\", action, resource) when { principal in Group::\"x\" };",
                "@id(\"a\") permit (principal, action, resource) when {\n  context.source.isInRange(ip(\"10.0.0.0/8\")) };",
                "@id(\"a\") permit (principal, action, resource) when { context.mfaa };",
                "@id(\"a\") permit (principal, action, resource) when { context.mfa == \"yes\" };",
                "@id(\"a\") permit (principal, action, resource) when { context.channel == Channel::\"phone\" };",
                "@id(\"a\") permit (principal, action == Action::\"read\", resource);",
                "@id(\"a\") permit (principal, action, resource == Host::\"app\");",
                "@id(\"a\") permit (principal, action, resource) when { context.resource.getTag(\"env\") == \"prod\" };",
                "@id(\"a\") permit (principal, action, resource) when { context.incidents.contains(\"inс-1\") };",
            ],
        ),
        (
            "tests/a.toml",
            &[
                "[[case]]\nname = \"x\"\nat = \"now\"\nsubject = \"alice\"\nresource = \"db\"\nexpect = { outcome = \"permitted\" }\n",
                "[[case]]\nname = \"x\"\nat = \"2026-12-01T10:00:00Z\"\nsubject = \"user:alice\"\nresource = \"db\"\nsource = \"home\"\nincidents = [\"INC 1\"]\nexpect = { outcome = \"maybe\" }\n",
                "[[case]]\nname = \"x\"\n",
            ],
        ),
        ("readme.toml", &[""]),
    ];
    for (file, contents) in files {
        for content in *contents {
            text += &format!("--- {file}: {content}\n{}", told(&[(file, content)]));
        }
    }
    insta::assert_snapshot!(text);
}

/// Too much of anything is refused by name.
#[test]
fn bounds() {
    let many = |entry: &dyn Fn(usize) -> String, count: usize| (0..count).map(entry).collect::<String>();
    let resources = many(&|at| format!("[[resource]]\nname = \"db-{at}\"\nunix = [\"/run/db\"]\n"), 10_000);
    let hosts = many(&|at| format!("[[host]]\nname = \"h-{at}\"\n"), 10_001);
    let roles = many(
        &|at| {
            format!("[[role]]\nname = \"r-{at}\"\nresources = [\"*\"]\nhosts = [\"*\"]\nautomatic = true\n")
        },
        1_001,
    );
    let deep = many(&|at| format!("[[group]]\nname = \"g-{at}\"\nmembers = [\"group:g-{}\"]\n", at + 1), 20)
        + "[[group]]\nname = \"g-20\"\n";
    let large = "#".repeat(FILE_MAX_BYTES + 1);
    let brackets = format!(
        "@id(\"a\") permit (principal, action, resource) when {{ {}true{} }};",
        "(".repeat(100_000),
        ")".repeat(100_000)
    );
    let nots =
        format!("@id(\"a\") permit (principal, action, resource) when {{ {}true }};", "!".repeat(100_000));
    let ands = format!(
        "@id(\"a\") permit (principal, action, resource) when {{ true{} }};",
        " && true".repeat(100_000)
    );
    let ifs = format!(
        "@id(\"a\") permit (principal, action, resource) when {{ {}true }};",
        "if true then true else ".repeat(30_000)
    );
    let members = format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (file, text, expected) in [
        ("resources.toml", resources, "resources.toml: 10000 resources are more than 4096"),
        ("hosts.toml", hosts, "hosts.toml: 10001 hosts are more than 10000"),
        ("roles.toml", roles, "roles.toml: 1001 roles are more than 1000"),
        ("subjects.toml", deep, "group `g-20` lies more than 16 groups deep"),
        ("hosts.toml", large, "hosts.toml: is larger than 1048576 bytes"),
        ("conditions/a.cedar", brackets, "brackets lie more than 32 deep"),
        ("conditions/a.cedar", nots, "it has more than 500 operators"),
        ("conditions/a.cedar", ands, "it has more than 500 operators"),
        ("conditions/a.cedar", ifs, "it has more than 500 operators"),
        ("subjects.toml", members, "subjects.toml:1:"),
    ] {
        let told = told(&[(file, &text)]);
        assert!(told.contains(expected), "{expected}: {}", told.chars().take(500).collect::<String>());
    }
    let files: BTreeMap<_, _> = (0..300).map(|at| (format!("tests/{at}.toml"), String::new())).collect();
    assert!(read(&files).is_err_and(|problems| problems[0].text == "300 files are more than 256"));
}

/// What is just within the bounds of complexity is checked and evaluated on the stack of a test.
#[test]
fn complicated_conditions() {
    let within = [
        format!("{}true{}", "(".repeat(30), ")".repeat(30)),
        format!("{}context.mfa", "!".repeat(4)),
        format!("true{}", " && context.mfa".repeat(160)),
        format!("{}true", "if context.mfa then true else ".repeat(150)),
        format!("0{} < 1", " + context.approvals".repeat(200)),
    ];
    // Neither comments nor strings are operators.
    let rules = format!(
        "// {}\n@id(\"a\") @help(\"{}\\\"\") permit (principal, action, resource);",
        "-".repeat(2000),
        "(".repeat(100)
    );
    assert_eq!(told(&[("conditions/a.cedar", &rules)]), "fine\n");
    for condition in within {
        let text = format!("@id(\"a\") permit (principal, action, resource) when {{ {condition} }};");
        assert_eq!(told(&[("conditions/a.cedar", &text)]), "fine\n", "{condition}");
    }
}

#[test]
fn group_closure() {
    let subjects = "[[subject]]\nid = \"user:alice\"\n[[group]]\nname = \"dba\"\nmembers = [\"user:alice\"]\n[[group]]\nname = \"b\"\nmembers = [\"group:dba\", \"user:alice\"]\n[[group]]\nname = \"c\"\nmembers = [\"group:b\"]\n";
    let mut files = tree(&GOOD);
    files.extend(tree(&[("subjects.toml", subjects)]));
    let policy = read(&files).expect("valid");
    let alice: SubjectId = "user:alice".parse().expect("valid");
    let groups: Vec<String> =
        policy.directory.subjects[&alice].groups.iter().map(ToString::to_string).collect();
    assert_eq!(groups, ["b", "c", "dba"]);
}

mod any {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever a file says, it is taken or refused.
        #[test]
        fn bytes_are_taken_or_refused(at in 0..GOOD.len(), from in 0usize..200, len in 0usize..20, text in ".{0,12}") {
            let (name, good) = GOOD[at];
            let chars: Vec<char> = good.chars().collect();
            let from = from.min(chars.len());
            let changed: String = chars[..from].iter().copied().chain(text.chars()).chain(chars[(from + len).min(chars.len())..].iter().copied()).collect();
            for problem in told(&[(name, &changed)]).lines().filter(|line| *line != "fine") {
                prop_assert!(problem.contains(": ") && problem.contains("; "), "{}", problem);
            }
        }
    }
}
