// NNI's portal listens on every interface, has no authentication and no option for the address.
// Loaded into the manager by NODE_OPTIONS=--require, this makes a server that names no host listen on 127.0.0.1.
"use strict";
const net = require("net");
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
