// The guard of NNI's manager, loaded into it by NODE_OPTIONS=--require (see docs/security.md).
// NNI's portal listens on every interface and has no password, and whoever talks to it can run programs.
// With the guard it listens on 127.0.0.1 only and refuses what other users of the machine send, and what a web page of
// another origin sends through the user's browser. Where NNI_CSSNAS_TOKEN is set it listens on every interface, and other machines have to know that secret:
// it is the first part of every path (NNI's own --url-prefix, which trials, keepers and the portal respect).
"use strict";
const fs = require("fs");
const http = require("http");
const Module = require("module");
const net = require("net");
const path = require("path");
const childProcess = require("child_process");

const LITTLE_ENDIAN = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

const main = process.argv[1] || "";
if (path.basename(main) === "main.js" && path.basename(path.dirname(main)) === "nni_node") {
    const token = process.env.NNI_CSSNAS_TOKEN || null;
    delete process.env.NNI_CSSNAS_TOKEN;
    if (token === null) {
        listenOnLoopback();
    } else {
        process.argv.push(`--url-prefix=${token}`); // not by the command line, which every user of the machine sees
    }
    guard(token);
    closeTensorBoard();
    closeTrialOutput();
    deferLibraries();
    waitForTuner();
    outliveMachines();
    closeIdleConnections();
}

function listenOnLoopback() {
    const listen = net.Server.prototype.listen;
    net.Server.prototype.listen = function (...args) {
        const first = args[0];
        if (typeof first === "number" || (typeof first === "string" && /^\d+$/.test(first))) {
            if (typeof args[1] !== "string") {
                args.splice(1, 0, "127.0.0.1");
            }
        } else if (first && typeof first === "object" && first.port !== undefined && first.host === undefined) {
            args[0] = Object.assign({}, first, { host: "127.0.0.1" });
        }
        return listen.apply(this, args);
    };
}

function guard(token) {
    const emit = http.Server.prototype.emit;
    http.Server.prototype.emit = function (event, request, response) {
        if (event !== "request" && event !== "upgrade") {
            return emit.apply(this, arguments);
        }
        const reason = refusal(request, token);
        if (reason === null) {
            if (event === "request") {
                response.setHeader("X-Frame-Options", "DENY");
                response.setHeader("Referrer-Policy", "same-origin"); // the token is a part of the address
            }
            return emit.apply(this, arguments);
        }
        const text = `nni_cssnas refuses this request: ${reason}\n`;
        if (event === "request") {
            response.writeHead(403, { "Content-Type": "text/plain", "Connection": "close" });
            response.end(text);
        } else {
            response.end(`HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n${text}`);
        }
        return true;
    };
}

// Why a request is refused, or null. Gives local requests of a public manager the prefix that they do not know.
function refusal(request, token) {
    const host = (request.headers.host || "").toLowerCase();
    const named = isLoopback(request.socket.remoteAddress) && /^(127\.0\.0\.1|localhost|\[::1\])(:\d+)?$/.test(host);
    const local = named && isOwn(request.socket);
    const target = request.url.split("?")[0];
    const known = token !== null && (target === `/${token}` || target.startsWith(`/${token}/`));
    if (token === null && named && !local) {
        return "it comes from another user of this machine";
    }
    if (token === null && !local) {
        // What DNS rebinding sends: a foreign name that was made to point here.
        return `its Host is ${JSON.stringify(host)}, not this machine's own`;
    }
    if (!local && !known) {
        return "its address lacks the secret that nni-cssnas printed";
    }
    const origin = request.headers.origin;
    if (origin !== undefined && !/^https?:\/\//.test(origin) || origin && origin.split("://")[1].toLowerCase() !== host) {
        return "it comes from a web page of another origin";
    }
    if (isCrossSite(request)) {
        return "it comes from a web page of another site";
    }
    if (climbs(target)) {
        return "its path leaves its folder";
    }
    if (target.toLowerCase().includes("/netron")) {
        return "it leads to another server's programs"; // NNI forwards them, under the portal's own origin
    }
    if (token !== null && !known) {
        request.url = `/${token}${request.url}`;
    }
    return null;
}

function isLoopback(address) {
    return /^(::ffff:)?127\.|^::1$/.test(address || "");
}

// Whether a loopback connection comes from this user's programs, or the administrator's. Linux tells whose socket it is;
// where it cannot be told, everybody is let in, as everywhere but on Linux. A socket that was closed already belongs to
// nobody (its inode is 0), whatever user Linux writes beside it.
const owners = new WeakMap();
function isOwn(socket) {
    if (!owners.has(socket)) {
        owners.set(socket, readOwner(socket));
    }
    return owners.get(socket);
}

function readOwner(socket) {
    if (process.platform !== "linux") {
        return true;
    }
    const there = hexAddresses(socket.remoteAddress, socket.remotePort);
    const here = hexAddresses(socket.localAddress, socket.localPort);
    for (const file of ["/proc/net/tcp", "/proc/net/tcp6"]) {
        let lines;
        try {
            lines = fs.readFileSync(file, "latin1").split("\n");
        } catch (error) {
            if (file.endsWith("6")) {
                continue; // a kernel without IPv6
            }
            return true;
        }
        for (const line of lines) {
            const [, from, to, , , , , uid, , inode] = line.trim().split(/\s+/);
            if (there.includes(from) && here.includes(to)) {
                return inode !== "0" && [0, process.getuid()].includes(Number(uid));
            }
        }
    }
    return false;
}

// An address and port as /proc/net/tcp and tcp6 write them: each 32 bits in the order of the processor.
function hexAddresses(address, port) {
    const end = ":" + port.toString(16).toUpperCase().padStart(4, "0");
    const plain = address.replace(/^::ffff:/, "");
    const flip = (bytes) => (LITTLE_ENDIAN ? bytes.reverse() : bytes).map((byte) => byte.toString(16).padStart(2, "0")).join("").toUpperCase();
    if (plain === "::1") {
        return ["0".repeat(24) + flip([0, 0, 0, 1]) + end];
    }
    const four = flip(plain.split(".").map(Number));
    return [four + end, "0".repeat(16) + flip([0, 0, 255, 255]) + four + end];
}

// Browsers tell this where they tell no Origin (pictures, scripts, frames). Following a link to the portal is allowed.
function isCrossSite(request) {
    const site = request.headers["sec-fetch-site"];
    const followed = request.headers["sec-fetch-mode"] === "navigate" && request.headers["sec-fetch-dest"] === "document";
    return !["same-origin", "none", undefined].includes(site) && !(followed && request.method === "GET");
}

// Whether a path has a part "..", however it is written, or cannot be read.
function climbs(target) {
    let text = target;
    for (let depth = 0; depth < 4; depth++) {
        if (!text.startsWith("/") || /(^|[/\\])\.\.([/\\]|$)/.test(text)) {
            return true;
        }
        let decoded;
        try {
            decoded = decodeURIComponent(text);
        } catch (error) {
            return depth === 0; // after the first time it is a name with a percent sign
        }
        if (decoded === text) {
            return false;
        }
        text = decoded;
    }
    return true;
}

// NNI opens two files for the output of each trial and never closes them: after some thousand trials a manager could open
// no more. The trial has its own by the time that spawn returns.
function closeTrialOutput() {
    const spawn = childProcess.spawn;
    childProcess.spawn = function (...args) {
        const child = spawn.apply(this, args);
        const options = args[args.length - 1] || {};
        for (const stream of Array.isArray(options.stdio) ? options.stdio : []) {
            if (stream instanceof fs.WriteStream && /^trial\.std(out|err)$/.test(path.basename(String(stream.path)))) {
                stream.end();
            }
        }
        return child;
    };
}

// The tuner and what tells NNI's version start in half the time and a quarter of it (see deferred.py).
function deferLibraries() {
    const spawn = childProcess.spawn;
    childProcess.spawn = function (command, args, ...rest) {
        if (Array.isArray(args) && args[0] === "-m" && /^nni(\.|$)/.test(args[1])) {
            args = ["-m", "nni_cssnas.bridge.nni_module", ...args.slice(1)];
        }
        return spawn.call(this, command, args, ...rest);
    };
}

// NNI lets the TensorBoard that its portal starts listen on every interface.
function closeTensorBoard() {
    const spawn = childProcess.spawn;
    childProcess.spawn = function (command, args, ...rest) {
        if (command === "tensorboard" && Array.isArray(args)) {
            args = args.map((word) => word.replace(/^--bind_all /, ""));
        }
        return spawn.call(this, command, args, ...rest);
    };
}

// At its end the manager waits until nobody is connected, five seconds at most: here only for who has an answer to come.
function closeIdleConnections() {
    const close = http.Server.prototype.close;
    http.Server.prototype.close = function (...args) {
        const closed = close.apply(this, args);
        this.closeIdleConnections();
        return closed;
    };
}

// NNI gives up a tuner that needs more than 10 seconds to import its libraries, as on a slow disk or a busy machine.
function waitForTuner() {
    global.setTimeout = new Proxy(global.setTimeout, {
        apply(target, self, [callback, delay, ...rest]) {
            const givesUp = delay === 10000 && String(callback).includes("Tuner did not connect");
            return Reflect.apply(target, self, [callback, givesUp ? 120000 : delay, ...rest]);
        },
    });
}

// On platform: remote NNI listens to no error of an SSH connection once it stands, so that the manager ended with the first
// connection that broke. And a machine that is gone without a word was never noticed by it.
function outliveMachines() {
    const load = Module._load;
    Module._load = function (request, ...rest) {
        const found = load.call(this, request, ...rest);
        if (request === "ssh2") {
            Module._load = load;
            const connect = found.Client.prototype.connect;
            found.Client.prototype.connect = function (config) {
                this.on("error", (error) => console.error(`SSH connection to ${config.host}: ${error.message}`));
                return connect.call(this, { keepaliveInterval: 15000, keepaliveCountMax: 4, ...config });
            };
        }
        return found;
    };
}
