//! Finds `ADD` lines that the engine itself would fetch: in the machine's own network, outside of
//! the bridge, the disk limit and the cgroup of the steps. Such a build is refused by name. Pure;
//! called before the engine gets the Dockerfile.

/// The first line that adds something from outside of the project, as it is written.
pub(super) fn remote(dockerfile: &str) -> Option<String> {
    let mut line = String::new();
    for part in dockerfile.lines() {
        let part = part.trim_end();
        // The engine also strips comments within a continued instruction.
        if part.trim_start().starts_with('#') {
            continue;
        }
        // The escape character can be set to a backtick.
        if let Some(begun) = part.strip_suffix(['\\', '`']) {
            line.push_str(begun);
            line.push(' ');
            continue;
        }
        line.push_str(part);
        if fetches(&line) {
            return Some(line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
        line.clear();
    }
    fetches(&line).then_some(line)
}

fn fetches(line: &str) -> bool {
    let mut words = line.split_whitespace().map(str::to_ascii_lowercase);
    let first = words.next();
    let instruction = match first.as_deref() {
        Some("onbuild") => words.next(),
        _ => first,
    };
    // A variable can hold anything when the engine expands it.
    let is_remote =
        |word: &str| word.contains("://") || word.contains("git@") || word.contains('$');
    instruction.as_deref() == Some("add") && words.any(|word| is_remote(&word))
}

#[cfg(test)]
mod tests {
    use super::remote;

    #[test]
    fn only_what_the_engine_would_fetch_itself_is_found() {
        for (dockerfile, is_found) in [
            ("FROM a\nADD http://169.254.169.254/ /x", true),
            ("FROM a\nadd --chown=1:1 HTTPS://x.example/a.tar /x", true),
            ("FROM a\nADD [\"https://x.example/a\", \"/x\"]", true),
            ("FROM a\nADD git@x.example:a/b.git /x", true),
            ("FROM a\nARG U=http://x\nADD $U /x", true),
            ("FROM a\nONBUILD ADD http://x /x", true),
            ("FROM a\nADD \\\n  # why\n  http://x \\\n /x", true),
            ("# escape=`\nFROM a\nADD `\nhttp://x /x", true),
            ("FROM a\nADD a.tar /x\nRUN curl http://x", false),
            ("FROM a\nCOPY a /x", false),
            ("FROM a\n# ADD http://x /x", false),
            ("FROM a\nRUN echo ADD http://x", false),
            ("", false),
        ] {
            assert_eq!(remote(dockerfile).is_some(), is_found, "{dockerfile}");
        }
    }
}
