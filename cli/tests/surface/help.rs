//! All help, in one text.

use clap::CommandFactory;

/// All help in one text, as jj does it: each change of wording is reviewed.
#[test]
fn reference() {
    let mut command = cli::args::Arguments::command().term_width(110);
    command.build();
    let mut text = String::new();
    collect(&mut command, &mut text);
    insta::assert_snapshot!("help", text);
}

fn collect(command: &mut clap::Command, text: &mut String) {
    let path = command.get_bin_name().unwrap_or("portcullis").to_owned();
    *text += &format!("===== {path}\n\n{}\n", command.render_long_help());
    for inner in command.get_subcommands_mut().filter(|inner| inner.get_name() != "help") {
        collect(inner, text);
    }
}
