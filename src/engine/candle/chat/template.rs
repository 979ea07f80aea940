//! Renders a chat template, which comes out of somebody else's file.
//!
//! Jinja as such cannot be given to strangers: a loop of fifty doublings asks for petabytes, a list that holds itself has no end, and a
//! process that runs out of memory or stack ends at once. So minijinja parses, and what it parsed is computed here, where every step,
//! byte and item is paid for out of a budget before it is made, nothing is lazy, and nothing nests deeper than is known. What chat
//! templates do not need is an error that names it, where it is reached.

mod calls;
mod operators;
mod value;

use std::collections::BTreeMap;
use std::thread;

use minijinja::machinery::ast::{CallArg, Expr, ForLoop, IfCond, Macro, Stmt};
use minijinja::machinery::{WhitespaceConfig, parse};
use minijinja::syntax::SyntaxConfig;

use value::{Budget, Fault, Value};

/// The longest template, in bytes: several times the longest that is known.
const LONGEST: usize = 64 << 10;
/// What minijinja parsed nests at most half as deep as the template has bytes (`{{a.a.a…`; it bounds itself what begins with an opening
/// sign), and is taken apart level by level: 4 KiB for each, of address space alone.
const STACK: usize = LONGEST / 2 * 4096;
/// How deep expressions, blocks and macros that call each other nest while they are computed.
const DEEPEST: usize = 500;
/// Steps, bytes and items that a template may make, each of which takes less than 100 bytes of memory: a hundred times what those known
/// need.
const BUDGET: usize = 1 << 18;

/// What a template is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given<'a> {
    /// Roles and contents.
    pub(super) messages: &'a [(&'a str, &'a str)],
    pub(super) bos: &'a str,
    pub(super) thinking: bool,
}

/// What the template makes of it.
///
/// # Errors
/// What is wrong, not supported or too much, and in which line.
pub(super) fn render(template: &str, given: &Given<'_>) -> Result<String, String> {
    if template.len() > LONGEST {
        let bytes = template.len();
        return Err(format!(
            "the chat template has {bytes} bytes: no more than {LONGEST} are read"
        ));
    }
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("limn-template".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, || compute(template, given))
            .map_err(|e| format!("there is no thread for the chat template: {e}"))?;
        // The parser is another's: should it panic, that ends its thread.
        let computed = thread
            .join()
            .unwrap_or_else(|_| Err(Fault::new("its parser, minijinja, panics on it")));
        computed.map_err(|fault| format!("the chat template: {fault}"))
    })
}

fn compute(template: &str, given: &Given<'_>) -> Result<String, Fault> {
    // As transformers sets them.
    let spaces = WhitespaceConfig {
        keep_trailing_newline: false,
        lstrip_blocks: true,
        trim_blocks: true,
    };
    let parsed = parse(template, "chat", SyntaxConfig, spaces);
    let parsed = parsed.map_err(|e| Fault::new(e.to_string()))?;
    let Stmt::Template(parsed) = &parsed else {
        return Err(Fault::new("is none"));
    };
    let budget = Budget::new(BUDGET);
    let text = |text: &str| budget.text(text.to_owned());
    let mut messages = Vec::new();
    for (role, content) in given.messages {
        let pairs = vec![
            ("role".into(), text(role)?),
            ("content".into(), text(content)?),
        ];
        messages.push(budget.map(pairs)?);
    }
    let names = BTreeMap::from([
        ("messages", budget.list(messages)?),
        ("add_generation_prompt", Value::Bool(true)),
        ("enable_thinking", Value::Bool(given.thinking)),
        ("bos_token", text(given.bos)?),
        ("eos_token", text("")?),
    ]);
    let mut run = Run {
        budget: &budget,
        names: vec![names, BTreeMap::new()],
        macros: BTreeMap::new(),
        depth: 0,
    };
    let mut out = String::new();
    run.block(&parsed.children, &mut out)?;
    Ok(out)
}

/// What goes on behind a statement.
#[derive(PartialEq)]
enum Flow {
    Next,
    Continue,
    Break,
}

type Names<'s> = BTreeMap<&'s str, Value>;

struct Run<'t, 's> {
    budget: &'t Budget,
    /// By block, the innermost last; the first are those given, the second the template's own.
    names: Vec<Names<'s>>,
    macros: BTreeMap<&'s str, &'t Macro<'s>>,
    depth: usize,
}

impl<'t, 's> Run<'t, 's> {
    fn block(&mut self, block: &'t [Stmt<'s>], out: &mut String) -> Result<Flow, Fault> {
        for statement in block {
            self.enter()?;
            let flow = self.statement(statement, out)?;
            self.depth -= 1;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    /// A step, and a level deeper. Whoever leaves it counts `depth` down again; behind an error nothing is computed any more.
    fn enter(&mut self) -> Result<(), Fault> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(Fault::new(format!("nests deeper than {DEEPEST}")));
        }
        self.budget.pay(1)
    }

    fn statement(&mut self, statement: &'t Stmt<'s>, out: &mut String) -> Result<Flow, Fault> {
        match statement {
            Stmt::EmitRaw(raw) => self.budget.write(out, raw.raw)?,
            Stmt::EmitExpr(emit) => {
                let value = self.value(&emit.expr)?;
                self.budget.write(out, &value.shown()?)?;
            }
            Stmt::Set(set) => {
                let value = self.value(&set.expr)?;
                self.assign(&set.target, value)?;
            }
            Stmt::SetBlock(set) if set.filter.is_none() => {
                let mut text = String::new();
                let flow = self.block(&set.body, &mut text)?;
                let text = self.budget.text(text)?;
                self.assign(&set.target, text)?;
                return Ok(flow);
            }
            Stmt::IfCond(condition) => return self.condition(condition, out),
            Stmt::ForLoop(each) => self.each(each, out)?,
            Stmt::Macro(made) => {
                self.macros.insert(made.name, made);
            }
            Stmt::Do(work) => {
                self.call(&work.call)?;
            }
            Stmt::Continue(_) => return Ok(Flow::Continue),
            Stmt::Break(_) => return Ok(Flow::Break),
            _ => return Err(Fault::new("has a kind of block that is not supported")),
        }
        Ok(Flow::Next)
    }

    fn condition(&mut self, condition: &'t IfCond<'s>, out: &mut String) -> Result<Flow, Fault> {
        if self.value(&condition.expr)?.is_true() {
            self.block(&condition.true_body, out)
        } else {
            self.block(&condition.false_body, out)
        }
    }

    fn each(&mut self, each: &'t ForLoop<'s>, out: &mut String) -> Result<(), Fault> {
        if each.recursive {
            return Err(Fault::new("has a recursive loop, which is not supported"));
        }
        let all = self.value(&each.iter)?;
        let mut items = self.budget.items(&all)?;
        if let Some(filter) = &each.filter_expr {
            let mut kept = Vec::new();
            for item in items {
                self.names.push(Names::new());
                self.assign(&each.target, item.clone())?;
                if self.value(filter)?.is_true() {
                    kept.push(item);
                }
                self.names.pop();
            }
            items = kept;
        }
        for (at, item) in items.iter().enumerate() {
            // Names that an iteration sets are gone in the next.
            self.names.push(Names::new());
            let position = self.position(&items, at)?;
            self.assign(&each.target, item.clone())?;
            self.set("loop", position)?;
            let flow = self.block(&each.body, out)?;
            self.names.pop();
            if flow == Flow::Break {
                break;
            }
        }
        if items.is_empty() {
            self.block(&each.else_body, out)?;
        }
        Ok(())
    }

    /// What a loop calls `loop`.
    fn position(&self, items: &[Value], at: usize) -> Result<Value, Fault> {
        let beside = |at: Option<usize>| {
            let item = at.and_then(|at| items.get(at));
            item.cloned().unwrap_or(Value::Undefined)
        };
        let left = items.len() - at;
        self.budget.map(vec![
            ("index0".into(), Value::count(at)),
            ("index".into(), Value::count(at + 1)),
            ("revindex0".into(), Value::count(left - 1)),
            ("revindex".into(), Value::count(left)),
            ("first".into(), Value::Bool(at == 0)),
            ("last".into(), Value::Bool(left == 1)),
            ("length".into(), Value::count(items.len())),
            ("previtem".into(), beside(at.checked_sub(1))),
            ("nextitem".into(), beside(Some(at + 1))),
        ])
    }

    fn set(&mut self, name: &'s str, value: Value) -> Result<(), Fault> {
        self.budget.pay(1)?;
        if let Some(names) = self.names.last_mut() {
            names.insert(name, value);
        }
        Ok(())
    }

    fn assign(&mut self, target: &'t Expr<'s>, value: Value) -> Result<(), Fault> {
        match target {
            Expr::Var(name) => self.set(name.id, value),
            Expr::GetAttr(place) => match self.value(&place.expr)? {
                Value::Namespace(names) => self.budget.keep(&names, place.name, value),
                other => Err(other.refused("has no attributes to set")),
            },
            Expr::List(targets) => {
                let parts = self.budget.items(&value)?;
                if parts.len() != targets.items.len() {
                    return Err(value.refused("has another number of parts than of names"));
                }
                for (target, part) in targets.items.iter().zip(parts) {
                    self.assign(target, part)?;
                }
                Ok(())
            }
            _ => Err(Fault::new("sets what cannot be set")),
        }
    }

    fn value(&mut self, expression: &'t Expr<'s>) -> Result<Value, Fault> {
        let line = expression.span().start_line;
        self.enter().map_err(|fault| fault.at(line))?;
        let value = self.computed(expression);
        self.depth -= 1;
        value.map_err(|fault| fault.at(line))
    }

    fn computed(&mut self, expression: &'t Expr<'s>) -> Result<Value, Fault> {
        match expression {
            Expr::Var(name) => {
                self.budget.pay(name.id.len())?;
                let found = self.names.iter().rev().find_map(|names| names.get(name.id));
                Ok(found.cloned().unwrap_or(Value::Undefined))
            }
            Expr::Const(constant) => self.constant(&constant.value),
            Expr::GetAttr(get) => {
                let of = self.value(&get.expr)?;
                self.budget.attribute(&of, get.name)
            }
            Expr::GetItem(get) => {
                let of = self.value(&get.expr)?;
                let key = self.value(&get.subscript_expr)?;
                self.budget.item(&of, &key)
            }
            Expr::Slice(slice) => {
                let of = self.value(&slice.expr)?;
                let mut ends = [None; 3];
                for (end, given) in ends
                    .iter_mut()
                    .zip([&slice.start, &slice.stop, &slice.step])
                {
                    if let Some(given) = given {
                        *end = self.value(given)?.end_of_slice()?;
                    }
                }
                self.budget.slice(&of, ends)
            }
            Expr::UnaryOp(operation) => {
                let value = self.value(&operation.expr)?;
                operators::unary(&operation.op, &value)
            }
            Expr::BinOp(operation) => {
                let left = self.value(&operation.left)?;
                // What decides already keeps the other side from being computed.
                if let Some(decided) = operators::decided(operation.op, &left) {
                    return Ok(decided);
                }
                let right = self.value(&operation.right)?;
                operators::binary(self.budget, operation.op, &left, &right)
            }
            Expr::Compare(comparison) => {
                let mut left = self.value(&comparison.expr)?;
                for step in &comparison.ops {
                    let right = self.value(&step.expr)?;
                    if !operators::compare(self.budget, step.op, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Ok(Value::Bool(true))
            }
            Expr::IfExpr(choice) => {
                if self.value(&choice.test_expr)?.is_true() {
                    return self.value(&choice.true_expr);
                }
                let other = choice.false_expr.as_ref();
                other.map_or(Ok(Value::Undefined), |other| self.value(other))
            }
            Expr::List(list) => {
                let items = list.items.iter().map(|item| self.value(item));
                let items = items.collect::<Result<_, _>>()?;
                self.budget.list(items)
            }
            Expr::Map(map) => {
                let mut pairs = Vec::new();
                for (key, value) in map.keys.iter().zip(&map.values) {
                    pairs.push((self.value(key)?.key()?, self.value(value)?));
                }
                self.budget.map(pairs)
            }
            Expr::Filter(filter) => {
                let Some(of) = &filter.expr else {
                    return Err(Fault::new("has a filter of nothing"));
                };
                let of = self.value(of)?;
                let arguments = self.arguments(&filter.args)?;
                calls::filter(self.budget, filter.name, &of, &arguments)
            }
            Expr::Test(test) => {
                let of = self.value(&test.expr)?;
                let arguments = self.arguments(&test.args)?;
                calls::test(self.budget, test.name, &of, &arguments).map(Value::Bool)
            }
            Expr::Call(call) => self.call(call),
        }
    }

    fn constant(&self, constant: &minijinja::Value) -> Result<Value, Fault> {
        use minijinja::value::ValueKind;
        match constant.kind() {
            ValueKind::None => Ok(Value::None),
            ValueKind::Bool => Ok(Value::Bool(constant.is_true())),
            ValueKind::Number => i64::try_from(constant.clone())
                .map(Value::Number)
                .map_err(|_| Fault::new(format!("{constant} is no whole number that can be"))),
            _ => match constant.as_str() {
                Some(text) => self.budget.text(text.to_owned()),
                None => Err(Fault::new("has a constant of an unknown kind")),
            },
        }
    }

    fn arguments(&mut self, given: &'t [CallArg<'s>]) -> Result<calls::Arguments<'s>, Fault> {
        let mut arguments = calls::Arguments::default();
        for argument in given {
            match argument {
                CallArg::Pos(value) => arguments.plain.push(self.value(value)?),
                CallArg::Kwarg(name, value) => arguments.named.push((name, self.value(value)?)),
                _ => return Err(Fault::new("unpacks arguments, which is not supported")),
            }
        }
        self.budget
            .pay(arguments.plain.len() + arguments.named.len())?;
        Ok(arguments)
    }

    fn call(&mut self, call: &'t minijinja::machinery::ast::Call<'s>) -> Result<Value, Fault> {
        match &call.expr {
            Expr::Var(function) => {
                let arguments = self.arguments(&call.args)?;
                match self.macros.get(function.id) {
                    Some(made) => self.expand(made, arguments),
                    None => calls::function(self.budget, function.id, &arguments),
                }
            }
            Expr::GetAttr(method) => {
                let of = self.value(&method.expr)?;
                let arguments = self.arguments(&call.args)?;
                calls::method(self.budget, method.name, &of, &arguments)
            }
            _ => Err(Fault::new("calls what is no function")),
        }
    }

    /// A macro sees the template's own names and its arguments.
    fn expand(&mut self, made: &'t Macro<'s>, given: calls::Arguments<'s>) -> Result<Value, Fault> {
        let hidden = self.names.split_off(2.min(self.names.len()));
        self.names.push(Names::new());
        let mut plain = given.plain.into_iter();
        let mut named: BTreeMap<&str, Value> = given.named.into_iter().collect();
        let without_default = made.args.len() - made.defaults.len();
        for (at, parameter) in made.args.iter().enumerate() {
            let Expr::Var(name) = parameter else {
                return Err(Fault::new("has a macro whose parameter is no name"));
            };
            let default = at.checked_sub(without_default).map(|at| &made.defaults[at]);
            let value = match (plain.next().or_else(|| named.remove(name.id)), default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.value(default)?,
                (None, None) => Value::Undefined,
            };
            self.set(name.id, value)?;
        }
        if plain.next().is_some() || !named.is_empty() {
            let name = made.name;
            return Err(Fault::new(format!("calls {name} with too many arguments")));
        }
        let mut text = String::new();
        self.block(&made.body, &mut text)?;
        self.names.truncate(2);
        self.names.extend(hidden);
        self.budget.text(text)
    }
}

#[cfg(test)]
mod tests;
