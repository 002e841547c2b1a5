// The part of Postman's scripting API that maestrale runs, for QuickJS.
//
// Loaded after chai, ajv and chai-postman, once for each event of a request. Python gives one JSON
// state in and reads one JSON state out; no script can call into Python. Whatever Postman has and
// this file has not is recorded in `unsupported` when it is touched, so that even a script that
// catches the exception can't pass.
"use strict";

(function (root) {
    const libraries = root.__libraries;
    delete root.__libraries;
    const state = JSON.parse(root.__state);
    delete root.__state;

    const outcome = {
        assertions: [],
        console: [],
        error: null,
        unsupported: null,
        pending: 0,
        skipRequest: false,
        nextRequest: undefined,
        scopes: state.scopes,
        request: state.request
    };
    const SKIP = { skip: true };

    function unsupported(call) {
        outcome.unsupported = outcome.unsupported || call;
        throw new Error(call + " is not supported by this runner");
    }

    // Names that engines and libraries probe on any object; to have none of them is normal.
    const PROBED = new Set(["then", "toJSON", "inspect", "nodeType", "nodeName", "length",
        "constructor", "prototype", "callee", "showDiff", "__esModule", "asymmetricMatch"]);

    function guard(target, name) {
        return new Proxy(target, {
            get(object, key) {
                if (typeof key === "symbol" || key in object) {
                    return Reflect.get(object, key);
                }
                return PROBED.has(key) ? undefined : unsupported(name + "." + key);
            },
            set(object, key) {
                return unsupported("setting " + name + "." + String(key));
            }
        });
    }

    // ---- variables ------------------------------------------------------------------------

    const PLACEHOLDER = /\{\{([^{}]+)\}\}/g;

    function dynamic(name) {
        switch (name) {
            case "$guid": case "$randomUUID":
                return "xxxxxxxx-xxxx-4xxx-8xxx-xxxxxxxxxxxx".replace(/x/g,
                    () => Math.floor(Math.random() * 16).toString(16));
            case "$timestamp": return String(Math.floor(Date.now() / 1000));
            case "$isoTimestamp": return new Date().toISOString();
            case "$randomInt": return String(Math.floor(Math.random() * 1001));
            default: return unsupported("the dynamic variable {{" + name + "}}");
        }
    }

    function replaceIn(text, get, has) {
        if (typeof text !== "string") {
            return text;
        }
        for (let depth = 0; depth < 20; depth += 1) {
            let changed = false;
            text = text.replace(PLACEHOLDER, (whole, name) => {
                if (has(name)) {
                    changed = true;
                    const value = get(name);
                    return value === null || value === undefined ? "" : String(value);
                }
                if (name[0] === "$") {
                    changed = true;
                    return dynamic(name);
                }
                return whole;
            });
            if (!changed) {
                break;
            }
        }
        return text;
    }

    function storable(value) {
        return value === undefined ? null : value;
    }

    function scope(values, label, name) {
        const has = (key) => Object.prototype.hasOwnProperty.call(values, key);
        const get = (key) => (has(key) ? values[key] : undefined);
        return guard({
            name: name,
            get: get,
            has: has,
            set(key, value) { values[key] = storable(value); },
            unset(key) { delete values[key]; },
            clear() { Object.keys(values).forEach((key) => delete values[key]); },
            toObject() { return Object.assign({}, values); },
            replaceIn(text) { return replaceIn(text, get, has); }
        }, label);
    }

    const scopes = outcome.scopes;
    const layers = [scopes.local, scopes.environment, scopes.collection, scopes.globals];
    const anyHas = (key) => layers.some((layer) => Object.prototype.hasOwnProperty.call(layer, key));
    const anyGet = (key) => {
        const layer = layers.find((one) => Object.prototype.hasOwnProperty.call(one, key));
        return layer === undefined ? undefined : layer[key];
    };

    const variables = guard({
        get: anyGet,
        has: anyHas,
        set(key, value) { scopes.local[key] = storable(value); },
        unset(key) { delete scopes.local[key]; },
        toObject() { return Object.assign({}, ...layers.slice().reverse()); },
        replaceIn(text) { return replaceIn(text, anyGet, anyHas); }
    }, "pm.variables");

    // ---- request and response -------------------------------------------------------------

    function headerList(list, label, writable) {
        const same = (name) => (header) => header.key.toLowerCase() === String(name).toLowerCase();
        const one = (name) => list.filter(same(name)).pop();
        const change = (action) => (...given) => (writable ? action(...given)
            : unsupported(label + " changed after the request was sent"));
        const remove = (name) => {
            for (let index = list.length - 1; index >= 0; index -= 1) {
                if (same(name)(list[index])) {
                    list.splice(index, 1);
                }
            }
        };
        const entry = (header) => ({ key: String(header.key), value: String(header.value) });
        return guard({
            get(name) { const found = one(name); return found === undefined ? undefined : found.value; },
            one: one,
            has(name, value) {
                return arguments.length > 1
                    ? list.some((header) => same(name)(header) && header.value === value)
                    : list.some(same(name));
            },
            all() { return list.slice(); },
            count() { return list.length; },
            each(visit) { list.forEach((header) => visit(header)); },
            toObject() {
                return list.reduce((found, { key, value }) => Object.assign(found, { [key]: value }), {});
            },
            add: change((header) => { list.push(entry(header)); }),
            upsert: change((header) => { remove(header.key); list.push(entry(header)); }),
            remove: change(remove)
        }, label);
    }

    function urlObject(text) {
        const parts = /^([a-z][a-z0-9+.-]*:\/\/)?([^/?#]*)([^?#]*)(?:\?([^#]*))?/i.exec(text);
        return guard({
            toString: () => text,
            toJSON: () => text,
            getHost: () => parts[2].replace(/:\d+$/, ""),
            getPath: () => parts[3] || "/",
            getQueryString: () => parts[4] || "",
            getRaw: () => text
        }, "pm.request.url");
    }

    const sent = state.request;
    const request = guard({
        id: state.info.requestId,
        name: state.info.requestName,
        method: sent.method,
        url: urlObject(sent.url),
        headers: headerList(sent.headers, "pm.request.headers", state.info.eventName === "prerequest"),
        body: sent.body === null ? undefined : guard({
            mode: sent.bodyMode,
            raw: sent.bodyMode === "raw" ? sent.body : undefined,
            toString: () => sent.body,
            isEmpty: () => sent.body === ""
        }, "pm.request.body")
    }, "pm.request");

    let response;
    if (state.response !== null) {
        const received = state.response;
        const raw = {
            code: received.code,
            status: received.status,
            headers: headerList(received.headers, "pm.response.headers", false),
            responseTime: received.responseTime,
            responseSize: received.responseSize,
            text: () => received.body,
            json: (reviver) => JSON.parse(received.body.replace(/^\ufeff/, ""), reviver),
            reason: () => received.status,
            details: () => ({ name: received.status, code: received.code }),
            size: () => ({ body: received.responseSize, header: 0, total: received.responseSize }),
            get to() { return libraries.chai.expect(response).to; }
        };
        response = guard(raw, "pm.response");
    }

    // ---- chai, as newman sets it up -------------------------------------------------------

    const own = (object, path) => String(path).split(".").reduce(
        (found, key) => (found === null || found === undefined ? undefined : found[key]), object);
    libraries.chaiPostman(
        {
            Request: { isRequest: (what) => what === request },
            Response: { isResponse: (what) => what !== undefined && what === response }
        },
        {
            forOwn: (object, visit) => Object.keys(object).forEach((key) => visit(object[key], key)),
            get: own,
            has: (object, path) => own(object, path) !== undefined,
            isEqual: libraries.chai.util.eql,
            isNumber: (value) => typeof value === "number",
            isString: (value) => typeof value === "string",
            isPlainObject: (value) => Object.prototype.toString.call(value) === "[object Object]"
        },
        libraries.Ajv
    )(libraries.chai, libraries.chai.util);

    // ---- pm -------------------------------------------------------------------------------

    function shown(value) {
        if (value === undefined) {
            return null;
        }
        const text = typeof value === "string" ? value : libraries.chai.util.inspect(value);
        return text.length > 2000 ? text.slice(0, 2000) + "…" : text;
    }

    function failure(error) {
        if (error === null || typeof error !== "object") {
            return { name: "Error", message: shown(String(error)), expected: null, actual: null };
        }
        return {
            name: String(error.name || "Error"),
            message: shown(String(error.message)),
            expected: "expected" in error ? shown(error.expected) : null,
            actual: "actual" in error ? shown(error.actual) : null
        };
    }

    function test(name, check) {
        const assertion = { name: String(name), passed: true, skipped: false, error: null };
        if (typeof check !== "function") {
            outcome.assertions.push(assertion);
            return pm;
        }
        const fail = (error) => {
            if (error === SKIP) { throw error; }
            assertion.passed = false;
            assertion.error = failure(error);
        };
        if (check.length > 0) {
            outcome.pending += 1;
            let over = false;
            const done = (error) => {
                if (over) { return; }
                over = true;
                outcome.pending -= 1;
                if (error) { fail(error); }
                outcome.assertions.push(assertion);
            };
            try { check(done); } catch (error) { done(error || new Error("thrown: " + String(error))); }
            return pm;
        }
        try {
            const result = check();
            if (result !== null && typeof result === "object" && typeof result.then === "function") {
                unsupported("pm.test with an async function");
            }
        } catch (error) {
            fail(error);
        }
        outcome.assertions.push(assertion);
        return pm;
    }
    test.skip = (name) => {
        outcome.assertions.push({ name: String(name), passed: true, skipped: true, error: null });
        return pm;
    };
    test.index = () => outcome.assertions.length + outcome.pending;

    const location = state.info.location.slice();
    location.current = location[location.length - 1];

    const members = {
        info: guard({
            eventName: state.info.eventName,
            iteration: 0,
            iterationCount: 1,
            requestName: state.info.requestName,
            requestId: state.info.requestId
        }, "pm.info"),
        globals: scope(scopes.globals, "pm.globals", "globals"),
        environment: scope(scopes.environment, "pm.environment", state.info.environmentName),
        collectionVariables: scope(scopes.collection, "pm.collectionVariables", "collectionVariables"),
        variables: variables,
        request: request,
        execution: guard({
            location: location,
            skipRequest() {
                if (state.info.eventName !== "prerequest") {
                    throw new TypeError("pm.execution.skipRequest is not a function");
                }
                outcome.skipRequest = true;
                throw SKIP;
            },
            setNextRequest(name) {
                outcome.nextRequest = name === undefined ? undefined : { name: name };
            }
        }, "pm.execution"),
        test: guard(test, "pm.test"),
        expect: libraries.chai.expect,
        response: response
    };
    const pm = guard(members, "pm");
    root.pm = pm;

    const log = (level) => (...values) => {
        if (outcome.console.length < 200) {
            outcome.console.push({ level: level, text: values.map(shown).join(" ") });
        }
    };
    root.console = guard({
        log: log("log"), info: log("info"), warn: log("warn"), error: log("error"), debug: log("debug")
    }, "console");

    // What Postman's sandbox has as globals, and this one has not.
    ["require", "postman", "tests", "responseBody", "responseCode", "responseHeaders", "responseTime",
        "responseCookies", "environment", "globals", "iteration", "data", "request", "setTimeout",
        "setInterval", "setImmediate", "clearTimeout", "clearInterval", "clearImmediate", "_",
        "CryptoJS", "tv4", "cheerio", "xml2Json", "Buffer", "atob", "btoa", "moment", "Backbone",
        "crypto", "TextEncoder", "TextDecoder", "URL", "URLSearchParams", "fetch", "XMLHttpRequest"
    ].forEach((name) => {
        Object.defineProperty(root, name, {
            configurable: true,
            get() { return unsupported(name); },
            set(value) {
                Object.defineProperty(root, name, { value: value, writable: true, configurable: true });
            }
        });
    });

    // ---- running --------------------------------------------------------------------------

    root.__run = function (source) {
        try {
            new Function(source).call(undefined);
        } catch (error) {
            if (error !== SKIP) {
                outcome.error = failure(error);
            }
        }
    };
    root.__outcome = () => JSON.stringify(outcome);
}(globalThis));
