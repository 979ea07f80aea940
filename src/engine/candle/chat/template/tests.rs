//! Held against minijinja with its Python methods, which takes what it is given; and what it must not be given.

use std::time::{Duration, Instant};

use minijinja::{Environment, context};
use proptest::prelude::*;

use super::super::super::measured::measured;
use super::*;

const GIVEN: Given<'_> = Given {
    messages: &[
        ("system", "be \n brief"),
        ("user", " Fargo (1996), déjà vu "),
    ],
    bos: "<s>",
    thinking: false,
};

/// The same by minijinja itself.
fn reference(template: &str) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_template("chat", template)?;
    let messages: Vec<_> = GIVEN
        .messages
        .iter()
        .map(|(role, content)| context! { role, content })
        .collect();
    environment.get_template("chat")?.render(context! {
        messages,
        add_generation_prompt => true,
        enable_thinking => GIVEN.thinking,
        bos_token => GIVEN.bos,
        eos_token => "",
    })
}

fn refusal(template: &str) -> String {
    render(template, &GIVEN).unwrap_err()
}

/// What chat templates are made of.
const PIECES: [&str; 60] = [
    "plain\n  {#- a comment -#}  text\n",
    "{{ bos_token }}{{ eos_token }}{{ nothing }}|{{ 3 }}|{{ 'a' ~ 1 ~ \"b\" }}",
    "{{ messages[0]['role'] }}{{ messages[-1].content }}{{ messages[1].none }}",
    "{{ messages | length }}{{ messages[0].content | length }}{{ 'é' | count }}",
    "{% for m in messages %}{{ loop.index0 }}{{ loop.index }}{{ loop.revindex }}{{ m.role }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for m in messages %}{{ loop.length }}{% if loop.previtem is defined %}{{ loop.previtem.role }}{% else %}{{ loop.nextitem.role }}{% endif %}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ m.content }}{% else %}none{% endfor %}",
    "{% for m in messages if m.role == 'tool' %}{{ m.content }}{% else %}none{% endfor %}",
    "{% for m in messages[::-1] %}{{ m.role }}{% endfor %}",
    "{% for m in messages[1:] %}{{ m.role }}{% endfor %}",
    "{% for a, b in [[1, 2], [3, 4]] %}{{ a }}{{ b }};{% endfor %}",
    "{% for k, v in {'x': 1, 'y': 'z'}.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k in {'x': 1} %}{{ k }}{% endfor %}",
    "{% for i in range(3) %}{{ i }}{% endfor %}{% for i in range(2, 9, 3) %}{{ i }}{% endfor %}",
    "{% for c in 'aé' %}<{{ c }}>{% endfor %}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% set x = 1 %}{% for i in range(2) %}{% set x = 5 %}{{ x }}{% endfor %}{{ x }}",
    "{% set ns = namespace(a=1, b='x') %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.c }}",
    "{% set x %}a{{ 1 }}\n{% endset %}[{{ x }}]",
    "{% set a, b = ['p', 'q'] %}{{ b }}{{ a }}",
    "{% if messages[0].role == 'system' %}A{% elif x %}B{% else %}C{% endif %}",
    "{% if x is defined and x is not none %}A{% elif messages is not string and messages is iterable %}B{% endif %}",
    "{% if enable_thinking is defined and enable_thinking is false %}off{% endif %}",
    "{{ 'a' if add_generation_prompt else 'b' }}{{ 'a' if none }}{{ 'b' if not true else 'c' }}",
    "{{ 'x' in 'xyz' }}{{ 'q' not in 'xyz' }}{{ 2 in [1, 2] }}{{ 'role' in messages[0] }}",
    "{{ 'yes' if 'x' in 'xyz' and 'q' not in 'xyz' and 2 in [1, 2] and 'role' in messages[0] }}",
    "{{ 7 // 2 }}{{ -7 // 2 }}{{ 7 % 3 }}{{ -7 % 3 }}{{ 2 * 3 - 1 + 4 }}{{ -(3) }}",
    "{{ 'y' if 1 < 2 <= 2 and 3 > 2 >= 2 and 1 != 2 and 'a' < 'b' }}",
    "{{ (none or 'x') ~ ('a' and 'b') ~ ('' or 0 or 'z') }}",
    "{{ ' a b '.strip() }}|{{ '\\n\\na\\n'.lstrip('\\n') }}|{{ 'xxaxy'.rstrip('yx') }}|{{ ' a ' | trim }}",
    "{{ 'y' if 'abc'.startswith('ab') and 'abc'.endswith('bc') and not 'abc'.startswith('b') }}",
    "{{ 'a</think>b'.split('</think>')[-1] }}{{ 'a,b,c'.split(',')[0] }}{{ 'a,b,c'.split(',', 1)[1] }}",
    "{{ ' a  b\\tc '.split() | join('+') }}{{ ','.join(['x', 'y']) }}{{ [1, 2] | join }}",
    "{{ 'banana'.replace('an', 'oo') }}{{ 'banana' | replace('a', '') }}",
    "{{ 'aBc'.upper() }}{{ 'aBc'.lower() }}{{ 'aBC d'.capitalize() }}{{ 'aBc' | upper }}{{ 'aB' | lower }}{{ 'aB' | capitalize }}",
    "{{ 'abcdef'[1:3] }}{{ 'abcdef'[:-2] }}{{ 'abcdef'[-2:] }}{{ 'abcdef'[::2] }}{{ 'abcdef'[1] }}",
    "{{ x | default('d') }}{{ '' | default('e', true) }}{{ '' | default('f') }}{{ 'g' | d('h') }}",
    "{{ messages | map(attribute='role') | join(',') }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | first }}",
    "{{ messages | rejectattr('role', 'equalto', 'user') | list | length }}",
    "{{ [1, 2, 3, 4] | select('even') | join }}{{ [0, 1] | reject | join }}",
    "{{ (messages | first).role }}{{ (messages | last).role }}",
    "{{ 'a\"\\n\\u00e9' | tojson }}{{ 1 | tojson }}{{ true | tojson }}{{ none | tojson }}",
    "{{ '12' | int + 1 }}{{ 3 | string ~ 'x' }}",
    "{{ {'a': 1}.get('a') }}{{ {'a': 1}.get('b', 2) }}{{ {'a': {'b': 3}}['a'].b }}",
    "{{ dict(a=1).a }}{{ {'a': 1} | items | length }}{{ {'a': 1}.keys() | join }}{{ {'a': 2}.values() | join }}",
    "{% macro f(a, b='x') %}[{{ a }}{{ b }}]{% endmacro %}{{ f(1) }}{{ f(1, 2) }}{{ f(b=3, a=4) }}{{ f() | length }}",
    "{% macro f(m) %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endmacro %}{% for m in messages %}{{ f(m) }}{% endfor %}",
    "{% macro down(n) %}{{ n }}{% if n %}{{ down(n - 1) }}{% endif %}{% endmacro %}{{ down(3) }}",
    "{% set g = 'G' %}{% macro f() %}{{ g }}{% endmacro %}{% for i in [1] %}{{ f() }}{% endfor %}",
    "{{ ([1] + [2, 3] | list) | length }}{{ ([1] + [2, 3]) | length }}",
    "{{ 'y' if 3 is odd and 4 is even and 3 is number and 'a' is string and {} is mapping and true is boolean and x is undefined }}",
    "{{ 'y' if 3 is eq 3 and 3 is ne 4 and 3 is lt 4 and 3 is le 3 and 3 is gt 2 and 3 is ge 3 and 3 is in [3] }}",
    "{{ ([1, 2, 3] | reverse) | join }}{{ [1, 2, 3][::-1] | join }}{{ [1, 2, 3, 4, 5][4:1:-1] | join }}",
    "{{ 'abc'[::-1] }}{{ 'abcdef'[-2:1:-1] }}{{ 'abc'[5:] }}{{ 'abc'[-9:2] }}",
    "   {%- if true -%}   x   {%- endif %}   \n  {% if true %}\n  y\n  {% endif %}\n",
    "{% raw %}{{ x }}{% endraw %}",
    "{% if tools %}{{ tools | groupby('x') | tojson }}{{ unheard() }}{% endif %}rest",
    "{% do namespace(a=1) %}{{ 'x' | safe }}",
    "{{ loop is defined }}",
];

#[test]
fn what_chat_templates_are_made_of_renders_as_minijinja_renders_it() {
    let mut wrong = Vec::new();
    for piece in PIECES {
        // Python writes what is true in its own way.
        let theirs = reference(piece).unwrap_or_else(|e| panic!("{piece}: {e}"));
        let theirs = theirs.replace("true", "True").replace("false", "False");
        let ours = render(piece, &GIVEN).unwrap_or_else(|e| e);
        if ours.replace("true", "True") != theirs {
            wrong.push(format!("{piece}\n  makes {ours:?}\n  not   {theirs:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where minijinja has others.
#[test]
fn slices_are_pythons() {
    for (ends, letters) in [
        ("4:0:-2", "ec"),
        ("::-2", "eca"),
        ("-1:-4:-1", "edc"),
        ("9::-1", "edcba"),
        (":-9:-1", "edcba"),
        ("3:1", ""),
        ("-9:9:3", "ad"),
        ("1:-1", "bcd"),
    ] {
        let template =
            format!("{{{{ 'abcde'[{ends}] }}}}{{{{ ['a', 'b', 'c', 'd', 'e'][{ends}] | join }}}}");
        assert_eq!(
            render(&template, &GIVEN).unwrap(),
            letters.repeat(2),
            "{ends}"
        );
    }
}

#[test]
fn a_template_that_asks_for_more_than_a_chat_template_may_is_refused_at_once() {
    let began = Instant::now();
    let long = format!("{{{{ a{} }}}}", ".a".repeat(32_000));
    let doubled = "{% set a = a ~ a %}".repeat(60);
    for (word, template) in [
        (
            "computes more",
            r#"{% set ns = namespace(s="aaaaaaaa") %}{% for i in range(50) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"#,
        ),
        (
            "computes more",
            &format!("{{% set a = 'aaaaaaaa' %}}{doubled}"),
        ),
        (
            "computes more",
            &format!("{{% set a = 'aaaaaaaa' %}}{}", doubled.replace('~', "+")),
        ),
        (
            "computes more",
            "{% set ns = namespace(l=[1, 2]) %}{% for i in range(50) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
        ),
        (
            "computes more",
            "{% set ns = namespace(s='aa') %}{% for i in range(50) %}{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
        ),
        (
            "computes more",
            "{% set ns = namespace(s='aa') %}{% for i in range(50) %}{% set ns.s = ns.s.join(ns.s) %}{% endfor %}",
        ),
        (
            "computes more",
            "{% set ns = namespace(s='aa') %}{% for i in range(50) %}{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}{% endfor %}",
        ),
        (
            "computes more",
            "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}{% set ns = namespace(s='aa') %}{% for i in range(50) %}{% set ns.s = m(ns.s) %}{% endfor %}",
        ),
        (
            "computes more",
            "{% for i in range(9223372036854775807) %}x{% endfor %}",
        ),
        (
            "computes more",
            "{% for i in range(999999999) %}{% endfor %}",
        ),
        (
            "computes more",
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        ),
        (
            "computes more",
            "{{ ('a' in 'b') }}{% for i in range(99999) %}xxxxxxxxxxx{% endfor %}",
        ),
        (
            "nest deeper than 32",
            "{% set ns = namespace(l=[]) %}{% for i in range(99) %}{% set ns.l = [ns.l] %}{% endfor %}",
        ),
        (
            "held by nothing",
            "{% set ns = namespace(a=1) %}{% set ns.a = ns %}{{ ns }}",
        ),
        (
            "held by nothing",
            "{% set ns = namespace(a=1) %}{% set ns.a = [ns] %}",
        ),
        ("cannot be written out", "{{ [1] }}"),
        ("cannot be compared", "{{ [1] == [1] }}"),
        (
            "nests deeper than 500",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        ),
        ("nests deeper than 500", &long),
        ("number that cannot be", "{{ 9223372036854775807 + 1 }}"),
        ("number that cannot be", "{{ 1 // 0 }}{{ 1 % 0 }}"),
        ("number that cannot be", "{{ 1 % 0 }}"),
        ("no whole number", "{{ 18446744073709551615 }}"),
        ("to compute with", "{{ 'x' * 1000000000 }}"),
        ("to compute with", "{{ [0] * 1000000000000000000 }}"),
        (
            "filter slice is not supported",
            "{{ [1, 2] | slice(1000000000000000000) }}",
        ),
        (
            "filter batch is not supported",
            "{{ [1, 2] | batch(1000000000000000000) }}",
        ),
        (
            "filter indent is not supported",
            "{{ 'x' | indent(1000000000000000000) }}",
        ),
        (
            "filter format is not supported",
            "{{ '%99999999999d' | format(1) }}",
        ),
        (
            "method format is not supported",
            "{{ '{:99999999999}'.format(1) }}",
        ),
        ("method count is not supported", "{{ 'a'.count('') }}"),
        ("splits at an empty text", "{{ 'a'.split('') }}"),
        ("goes on by 0", "{{ 'a'[::0] }}"),
        ("65536 are read", &"x".repeat(LONGEST + 1)),
    ] {
        let error = refusal(template);
        let begun = &template[..template.len().min(100)];
        assert!(
            error.replace("cannot go on", "goes on").contains(word) && error.contains("template"),
            "{begun}: {error}"
        );
    }
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[test]
fn no_template_takes_more_memory_than_its_budget_allows() {
    let many = "{% set ns = namespace(s='aaaaaaaaaaaaaaaa', l=[]) %}{% for i in range(11) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}";
    let mut most = 0;
    for greedy in [
        "{% for i in range(50) %}{% set a = ns.s | list %}{% for c in ns.s %}{% set ns.l = a %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% set ns.l = ns.l + [[i]] %}{% endfor %}",
        "{% for i in range(99999) %}{% set ns.l = [{'a': i, 'b': i}, namespace, i] %}{% endfor %}",
        "{% set x = range(99999) %}{% for i in x %}{% for j in x %}{% endfor %}{% endfor %}",
        "{% set x = range(60000) %}{% set y = x | list %}{% set z = y[::-1] %}{% set w = z[:] %}{% set v = w[:] %}",
        "{% macro m(n) %}{% set x = ns.s | list %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{% set x = ns.s.split('a') %}{% set y = ns.s.replace('a', 'bb') %}{% set z = y | list %}{% set u = y.upper() | list %}",
        "{% for i in range(99999) %}{{ ns.s }}{% endfor %}",
        "{% set ns.s = '\\u0001' %}{% for i in range(14) %}{% set ns.s = ns.s ~ ns.s %}{{ ns.s | tojson }}{% endfor %}",
    ] {
        let template = [many, greedy].concat();
        let (_, taken) = measured(|| compute(&template, &GIVEN));
        assert!(taken < 100 * BUDGET, "{greedy}: {taken}");
        most = most.max(taken);
    }
    // They do ask for much.
    assert!(most > 10 * BUDGET, "{most}");
}

#[test]
fn what_nests_as_deep_as_a_template_can_is_taken_apart_without_an_overflow() {
    for (begin, again, end) in [
        ("{{ a", ".a", " }}"),
        ("{{ a", "|a", " }}"),
        ("{{ a", "~a", " }}"),
        ("{{ a", "()", " }}"),
        ("{{ a", "[1]", " }}"),
        ("{{ a", " if a else a", " }}"),
        ("{{ ", "(", " }}"),
        ("{{ ", "[", " }}"),
        ("{{ ", "-", "1 }}"),
        ("{{ ", "not ", "1 }}"),
        ("{% if a %}", "{%elif a%}", "{% endif %}"),
        ("", "{%if a%}", ""),
        ("", "{%for a in a%}", ""),
        ("{% for a in a recursive %}", "{{loop(a)}}", "{% endfor %}"),
    ] {
        let times = (LONGEST - begin.len() - end.len()) / again.len();
        let template = [begin, &again.repeat(times), end].concat();
        // An error is as good.
        let _ = render(&template, &GIVEN);
    }
}

#[test]
fn an_error_says_in_which_line() {
    let error = refusal("a\n\n{{ 'a' + 1 }}");
    assert!(error.contains("line 3: a text and a number"), "{error}");
    let error = refusal("a\n{{ }}");
    assert!(error.contains("chat:2"), "{error}");
    let error = refusal("{{ x.y }}");
    assert!(
        error.contains("y is asked of an undefined value"),
        "{error}"
    );
    let error = refusal("{% include 'x' %}");
    assert!(error.contains("not supported"), "{error}");
}

#[test]
fn the_templates_known_stay_far_within_the_budget() {
    // A hundred messages, each as Qwen3 writes them, take less than all of it; there are two.
    let template = super::super::tests::template("qwen3");
    let messages = [("user", "u"); 100];
    let given = Given {
        messages: &messages,
        ..GIVEN
    };
    assert!(
        render(&template, &given)
            .unwrap()
            .matches("<|im_start|>")
            .count()
            > 100
    );
}

proptest! {
    /// Pieces of templates, cut and put together anyhow.
    #[test]
    fn no_template_panics_or_takes_long(cuts in prop::collection::vec((0..PIECES.len(), 0usize..200, 0usize..200), 1..6)) {
        let letters = |piece: &str, from: usize, count: usize| -> String {
            piece.chars().skip(from % 40).take(count).collect()
        };
        let template: String = cuts.iter().map(|(at, from, count)| letters(PIECES[*at], *from, *count)).collect();
        let began = Instant::now();
        if let Err(error) = render(&template, &GIVEN) {
            prop_assert!(!error.contains("panics"), "{}: {}", template, error);
        }
        prop_assert!(began.elapsed() < Duration::from_secs(10));
    }
}
