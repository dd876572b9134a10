//! Rust text as far as the rules need it: lines without comments and string contents, which lines are
//! tests, and every path named, with `use` trees spread out.

use std::ops::RangeInclusive;

/// One line: its code, and whether it belongs to an item under `#[cfg(test)]`.
pub struct Line {
    pub code: String,
    pub test: bool,
}

pub struct Source {
    pub lines: Vec<Line>,
}

/// A path as it is named in the code.
pub struct Used {
    pub parts: Vec<String>,
    /// Counted from 1.
    pub line: usize,
    /// The lines of the whole statement, counted from 1.
    pub span: RangeInclusive<usize>,
    pub import: bool,
    pub test: bool,
}

/// Replaces comments and the contents of strings and characters by blanks, keeping line breaks.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let get = |at: usize| chars.get(at).copied().unwrap_or('\0');
    let mut out = String::with_capacity(text.len());
    let keep_break = |c: char| if c == '\n' { '\n' } else { ' ' };
    let mut at = 0;
    while at < chars.len() {
        let (c, next) = (get(at), get(at + 1));
        let in_word = at > 0 && (get(at - 1).is_alphanumeric() || get(at - 1) == '_');
        let start = at;
        if c == '/' && next == '/' {
            while at < chars.len() && get(at) != '\n' {
                at += 1;
            }
        } else if c == '/' && next == '*' {
            let mut depth = 0;
            loop {
                match (get(at), get(at + 1)) {
                    ('/', '*') => (depth, at) = (depth + 1, at + 2),
                    ('*', '/') => (depth, at) = (depth - 1, at + 2),
                    _ => at += 1,
                }
                if depth == 0 || at >= chars.len() {
                    break;
                }
            }
        } else if c == '"' {
            at += 1;
            while at < chars.len() && get(at) != '"' {
                at += if get(at) == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if let Some(hashes) = raw_string(&chars[at..]).filter(|_| !in_word) {
            let end: Vec<char> = std::iter::once('"').chain((0..hashes).map(|_| '#')).collect();
            at += hashes + 2;
            while at < chars.len() && !chars[at..].starts_with(&end) {
                at += 1;
            }
            at += end.len();
        } else if c == '\'' && (next == '\\' || get(at + 2) == '\'') {
            at += if next == '\\' { 3 } else { 2 };
            while at < chars.len() && get(at) != '\'' {
                at += 1;
            }
            at += 1;
        } else {
            out.push(c);
            at += 1;
            continue;
        }
        at = at.min(chars.len());
        out.extend(chars[start..at].iter().map(|c| keep_break(*c)));
    }
    out
}

/// How many hashes, if a raw string starts here.
fn raw_string(chars: &[char]) -> Option<usize> {
    if chars.first() != Some(&'r') {
        return None;
    }
    let hashes = chars[1..].iter().take_while(|c| **c == '#').count();
    (chars.get(hashes + 1) == Some(&'"')).then_some(hashes)
}

impl Source {
    pub fn read(text: &str) -> Source {
        let code = blank(text);
        let mut lines: Vec<Line> =
            code.lines().map(|line| Line { code: line.to_owned(), test: false }).collect();
        let mut from = 0;
        while let Some(found) = code[from..].find("#[cfg(test)]") {
            let start = from + found;
            let end = item_end(&code, start + "#[cfg(test)]".len());
            let line_of = |at: usize| code[..at].matches('\n').count();
            for line in &mut lines[line_of(start)..=line_of(end)] {
                line.test = true;
            }
            from = end;
        }
        Source { lines }
    }
}

/// Where the item ends that starts at `at`: at its `;`, or at the brace that closes its first one.
fn item_end(code: &str, at: usize) -> usize {
    let mut depth = 0;
    for (n, c) in code[at..].char_indices() {
        match c {
            ';' if depth == 0 => return at + n,
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return at + n;
                }
            }
            _ => {}
        }
    }
    code.len().saturating_sub(1)
}

/// A token: a word, or one character (`::` counts as one).
fn tokens(source: &Source) -> Vec<(String, usize)> {
    let mut all = Vec::new();
    for (at, line) in source.lines.iter().enumerate() {
        let mut word = String::new();
        let mut chars = line.code.chars().peekable();
        while let Some(c) = chars.next() {
            if c.is_alphanumeric() || c == '_' {
                word.push(c);
                continue;
            }
            if !word.is_empty() {
                all.push((std::mem::take(&mut word), at));
            }
            if c == ':' && chars.peek() == Some(&':') {
                chars.next();
                all.push(("::".to_owned(), at));
            } else if !c.is_whitespace() {
                all.push((c.to_string(), at));
            }
        }
        if !word.is_empty() {
            all.push((word, at));
        }
    }
    all
}

fn is_word(token: &str) -> bool {
    token.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// All paths named. Single words count too: `HashMap` alone is a path of one part.
pub fn paths(source: &Source) -> Vec<Used> {
    let tokens = tokens(source);
    let mut all = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at].0 == "use" {
            let len = tokens[at..].iter().take_while(|(token, _)| token != ";").count();
            let tree = &tokens[at + 1..at + len];
            let last = tree.last().map_or(tokens[at].1, |(_, line)| *line);
            let span = tokens[at].1 + 1..=last + 1;
            let mut named = Vec::new();
            spread(tree, &mut 0, &[], &mut named);
            all.extend(named.into_iter().map(|(parts, line)| Used {
                parts,
                line: line + 1,
                span: span.clone(),
                import: true,
                test: source.lines[line].test,
            }));
            at += len;
        } else if is_word(&tokens[at].0) {
            let line = tokens[at].1;
            let mut parts = vec![tokens[at].0.clone()];
            at += 1;
            while at + 1 < tokens.len() && tokens[at].0 == "::" && is_word(&tokens[at + 1].0) {
                parts.push(tokens[at + 1].0.clone());
                at += 2;
            }
            let test = source.lines[line].test;
            let span = line + 1..=line + 1;
            all.push(Used { parts, line: line + 1, span, import: false, test });
        } else {
            at += 1;
        }
    }
    all
}

/// Spreads a `use` tree from `at` on until its end or the closing brace of the group it is in.
fn spread(
    tree: &[(String, usize)],
    at: &mut usize,
    stem: &[String],
    into: &mut Vec<(Vec<String>, usize)>,
) {
    let mut path = stem.to_vec();
    let mut line = tree.get(*at).map_or(0, |(_, line)| *line);
    let mut grouped = false;
    while let Some((token, here)) = tree.get(*at) {
        *at += 1;
        match token.as_str() {
            "::" => {}
            "{" => {
                spread(tree, at, &path, into);
                grouped = true;
            }
            "," | "}" => {
                if !grouped && path.len() > stem.len() {
                    into.push((std::mem::replace(&mut path, stem.to_vec()), line));
                }
                path = stem.to_vec();
                grouped = false;
                if token == "}" {
                    return;
                }
            }
            // The new name is nobody's path.
            "as" => *at += 1,
            word => {
                path.push(word.to_owned());
                line = *here;
            }
        }
    }
    if !grouped && path.len() > stem.len() {
        into.push((path, line));
    }
}
