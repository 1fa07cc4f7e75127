-- Finds the engine that keeps an answer of /v1/responses: each keeps its own, and nobody else knows
-- which has one. Engines that HAProxy believes to be well are asked first, and all of them before
-- the client hears that there is no such answer.

local SECTION = "raycluster-kept"
local ID, HOLDER = "txn.raycluster_kept", "txn.raycluster_holder"
local UNSURE = "?" -- no engine has it, but one that may have it did not say

-- The servers of the section as name and URL, those that are up first.
local function engines()
  local up, down = {}, {}
  for name, server in pairs(core.backends[SECTION].servers) do
    local host, port = server:get_addr():match("^(.*):(%d+)$")
    if host:find(":", 1, true) then host = "[" .. host .. "]" end
    local list = server:get_stats().status:find("UP", 1, true) and up or down
    list[#list + 1] = { name = name, url = "http://" .. host .. ":" .. port }
  end
  return table.move(down, 1, #down, #up + 1, up)
end

core.register_action("raycluster_find", { "http-req" }, function(txn, milliseconds)
  local id = txn:get_var(ID)
  if not id or not id:find("^[%w_-]+$") then return end
  local says_no, unsure
  for _, engine in ipairs(engines()) do
    local asked = { url = engine.url .. "/v1/responses/" .. id, timeout = tonumber(milliseconds) }
    local answer = core.httpclient():get(asked)
    if answer.status == 200 then return txn:set_var(HOLDER, engine.name) end
    if answer.status ~= 404 then
      unsure = true
    elseif not says_no or answer.body:find('"error"', 1, true) then
      says_no = engine.name -- the words of one that has such answers, if there is one
    end
  end
  if unsure or says_no then txn:set_var(HOLDER, unsure and UNSURE or says_no) end
end, 1)
