//! One Rust file as the rules see it: its tokens with their lines, comments left out.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ident,
    Punct,
    Literal,
    Open,
    Close,
}

#[derive(Debug)]
pub struct Token {
    pub kind: Kind,
    pub text: String,
    pub line: usize,
    /// Differs from `line` in a literal that goes over several lines.
    pub last_line: usize,
}

impl Token {
    pub fn is(&self, text: &str) -> bool {
        self.text == text && self.kind != Kind::Literal
    }
}

/// A file and its tokens in order, brackets included, doc comments left out.
pub struct Source<'a> {
    pub path: &'a str,
    pub text: &'a str,
    pub tokens: Vec<Token>,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    pub line: usize,
    /// From its signature to the closing brace.
    pub code_lines: usize,
}

impl<'a> Source<'a> {
    /// Splits the file into tokens.
    ///
    /// # Errors
    ///
    /// The file is not Rust.
    pub fn read(path: &'a str, text: &'a str) -> Result<Self> {
        let stream: TokenStream = text.parse().map_err(|error| anyhow!("{path}: {error}"))?;
        let mut tokens = Vec::new();
        flatten(stream, &mut tokens);
        Ok(Self { path, text, tokens })
    }

    /// The lines that are neither blank nor only comment.
    pub fn code_lines(&self) -> usize {
        count_lines(&self.tokens)
    }

    /// The functions with a body, those inside macro calls and other functions too.
    pub fn functions(&self) -> Vec<Function> {
        let starts = (0..self.tokens.len()).filter(|&at| self.tokens[at].is("fn"));
        starts.filter_map(|at| self.function_at(at)).collect()
    }

    /// The function whose `fn` is at this token; a function pointer type has no name, a required method no body.
    fn function_at(&self, at: usize) -> Option<Function> {
        let name = self.tokens.get(at + 1).filter(|token| token.kind == Kind::Ident)?;
        let mut index = at + 2;
        while !self.tokens.get(index)?.is("{") {
            let token = &self.tokens[index];
            if token.is(";") || token.kind == Kind::Close {
                return None;
            }
            index = if token.kind == Kind::Open { self.close_of(index) + 1 } else { index + 1 };
        }
        let body = &self.tokens[at..=self.close_of(index)];
        Some(Function { name: name.text.clone(), line: name.line, code_lines: count_lines(body) })
    }

    /// The tokens between the bracket at `open` and the one that closes it.
    pub fn inside(&self, open: usize) -> &[Token] {
        &self.tokens[open + 1..self.close_of(open)]
    }

    /// The attributes as the tokens between their brackets.
    pub fn attributes(&self) -> impl Iterator<Item = &[Token]> {
        let opens = (1..self.tokens.len()).filter(|&at| {
            let before = &self.tokens[..at];
            let sign = before.last().filter(|token| token.is("!")).map_or(before.len(), |_| before.len() - 1);
            self.tokens[at].is("[") && before[..sign].last().is_some_and(|token| token.is("#"))
        });
        opens.map(|open| self.inside(open))
    }

    fn close_of(&self, open: usize) -> usize {
        let mut depth = 0_usize;
        for (index, token) in self.tokens.iter().enumerate().skip(open) {
            match token.kind {
                Kind::Open => depth += 1,
                Kind::Close if depth == 1 => return index,
                Kind::Close => depth -= 1,
                _ => {}
            }
        }
        self.tokens.len() - 1
    }
}

fn count_lines(tokens: &[Token]) -> usize {
    tokens.iter().flat_map(|token| token.line..=token.last_line).collect::<BTreeSet<_>>().len()
}

fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
    for tree in stream {
        match tree {
            TokenTree::Group(group) => flatten_group(&group, tokens),
            TokenTree::Ident(ident) => {
                let text = ident.to_string();
                push(Kind::Ident, text.trim_start_matches("r#").to_owned(), ident.span(), tokens);
            }
            TokenTree::Punct(punct) => push(Kind::Punct, punct.as_char().to_string(), punct.span(), tokens),
            TokenTree::Literal(literal) => push(Kind::Literal, literal.to_string(), literal.span(), tokens),
        }
    }
}

fn flatten_group(group: &Group, tokens: &mut Vec<Token>) {
    if group.delimiter() == Delimiter::Bracket && is_doc(&group.stream()) {
        // The lexer turns a doc comment into an attribute; its `#` and `!` are already here.
        tokens.pop_if(|token| token.is("!"));
        tokens.pop_if(|token| token.is("#"));
        return;
    }
    let (open, close) = match group.delimiter() {
        Delimiter::Brace => ("{", "}"),
        Delimiter::Bracket => ("[", "]"),
        Delimiter::Parenthesis => ("(", ")"),
        Delimiter::None => ("", ""),
    };
    push(Kind::Open, open.into(), group.span_open(), tokens);
    flatten(group.stream(), tokens);
    push(Kind::Close, close.into(), group.span_close(), tokens);
}

/// Whether an attribute is `doc = "…"`.
fn is_doc(attribute: &TokenStream) -> bool {
    let mut trees = attribute.clone().into_iter();
    let is_named = matches!(trees.next(), Some(TokenTree::Ident(name)) if name == "doc");
    is_named && matches!(trees.next(), Some(TokenTree::Punct(sign)) if sign.as_char() == '=')
}

fn push(kind: Kind, text: String, span: proc_macro2::Span, tokens: &mut Vec<Token>) {
    tokens.push(Token { kind, text, line: span.start().line, last_line: span.end().line });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_and_every_kind_of_comment_are_no_code() {
        let text = "//! Doc.\n\n// fn a() {}\n/* two\nlines */\n/// Doc.\nfn f() {\n    // inside\n    g(\"// x\"); // after\n}\n";
        assert_eq!(Source::read("a.rs", text).unwrap().code_lines(), 3);
    }

    #[test]
    fn a_literal_over_three_lines_is_three_lines_of_code() {
        assert_eq!(Source::read("a.rs", "const A: &str = \"a\n\nb\";\n").unwrap().code_lines(), 3);
    }

    #[test]
    fn functions_are_found_in_traits_in_macro_calls_and_in_functions() {
        let text = "trait T { fn required(&self, n: [u8; 3]);\n fn given(&self) { fn inner() {} } }\n\
                    proptest! { fn p(x in 0..3) -> Result<(), E>\n where E: F {\n } }\nstatic F: fn(u8) = g;\n";
        let functions = Source::read("a.rs", text).unwrap().functions();
        let found: Vec<_> = functions.iter().map(|f| (f.name.as_str(), f.line, f.code_lines)).collect();
        assert_eq!(found, [("given", 2, 1), ("inner", 2, 1), ("p", 3, 3)]);
    }

    #[test]
    fn attributes_are_found_outer_and_inner_and_documentation_is_none() {
        let source =
            Source::read("a.rs", "#![allow(x)]\n/// Doc.\n#[test]\nfn f(a: [u8; 2]) -> bool { !a[0] }")
                .unwrap();
        let first: Vec<_> = source.attributes().map(|tokens| tokens[0].text.as_str()).collect();
        assert_eq!(first, ["allow", "test"]);
    }

    #[test]
    fn what_is_not_rust_is_an_error_that_names_the_file() {
        let error = Source::read("a.rs", "fn f( {").map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with("a.rs: "), "{error}");
    }
}
